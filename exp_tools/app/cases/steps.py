"""From one case to the next: buttons, and keys that press them."""

import streamlit as st

KEYS = "Keys ← → and J, K"
SCRIPT = """
<script>
(() => {
  if (window.expToolsSteps) return;
  window.expToolsSteps = true;
  const steps = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 };
  const untyped = "[type=checkbox], [type=radio], [type=range]";
  const typing = `input:not(${untyped}), textarea, select, [contenteditable=true], [role=combobox], [role=dialog]`;
  const arrows = "[type=radio], [type=range], [role=slider], [role=radio], [role=listbox], [role=tab], [role=menu], "
    + "table, canvas";
  const buttons = () => document.querySelectorAll(".st-key-keyed button");
  let waiting = 0, working = false, pressed = null;
  const work = () => {
    const drawn = document.querySelector("[data-test-script-state=notRunning]");
    if (!drawn || (pressed && pressed.search === location.search && Date.now() < pressed.until)) {
      setTimeout(work, 40);
      return;
    }
    const lost = pressed && pressed.search === location.search && !pressed.again ? pressed.step : 0;
    waiting += lost;  // a click that came while the page began to be drawn again
    working = waiting !== 0 && buttons().length > 0;
    if (!working) {
      waiting = 0;
      pressed = null;
      return;
    }
    const step = Math.sign(waiting);
    waiting -= step;
    pressed = { step, search: location.search, until: Date.now() + 1500, again: lost !== 0 };
    buttons()[step > 0 ? 1 : 0].click();
    setTimeout(work, 40);
  };
  document.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.defaultPrevented || event.target.closest(typing)) return;
    if (event.key.length > 1 && event.target.closest(arrows)) return;
    if (!buttons().length) return;
    event.preventDefault();
    if (event.repeat && working) return;
    waiting += step;
    if (!working) {
      working = true;
      work();
    }
  });
  const tell = () => {
    buttons().forEach((button, step) => {
      const keys = step ? "ArrowRight J" : "ArrowLeft K";
      if (button.getAttribute("aria-keyshortcuts") !== keys) button.setAttribute("aria-keyshortcuts", keys);
    });
  };
  new MutationObserver(tell).observe(document.body, { childList: true, subtree: true });
  tell();
})();
</script>
"""
"""Keys work only while the buttons are there and the visitor has them on; where a key has a meaning of its own (typing,
a slider, a list, a table that scrolls) it keeps that. A press waits until the page has drawn the step before, so that
none is lost; a key that is held down steps as fast as the page draws."""


def show(place: int, count: int, go) -> None:
    """Draw the buttons; `go(place)` is called with the place of the case that was asked for, after the last the first.

    place : of the case that is shown among the `count` selected; -1: it is not among them
    """
    st.html(SCRIPT, unsafe_allow_javascript=True)
    keyed = st.session_state.get("keys", True)
    with st.container(horizontal=True, vertical_alignment="center", key="case-steps"):
        with st.container(horizontal=True, width="content", key="keyed" if keyed else "unkeyed"):
            st.button(
                "Previous",
                icon=":material/arrow_back:",
                on_click=go,
                args=((max(place, 0) - 1) % count,),
                disabled=not count,
                key="previous",
            )
            st.button(
                "Next",
                icon=":material/arrow_forward:",
                icon_position="right",
                on_click=go,
                args=((place + 1) % count,),
                disabled=not count,
                key="next",
            )
        st.markdown(f"**{place + 1:,}** of {count:,}" if place >= 0 else f"– of {count:,}", width="content")
        st.toggle(KEYS, value=True, key="keys", persist_state="session")
