"""From one case to the next: buttons, and keys that press them."""

import streamlit as st

KEYS = "Keys ← → and J, K"
SCRIPT = """
<script>
(() => {
  if (window.expToolsSteps) return;
  window.expToolsSteps = true;
  const steps = { ArrowLeft: 0, k: 0, ArrowRight: 1, j: 1 };
  const typing = "input:not([type=checkbox]), textarea, select, [contenteditable=true], [role=combobox], [role=dialog]";
  const arrows = "[role=slider], [role=radio], [role=listbox], [role=tab], [role=menu], table, canvas";
  document.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.defaultPrevented || event.target.closest(typing)) return;
    if (event.key.length > 1 && event.target.closest(arrows)) return;
    const button = document.querySelectorAll(".st-key-keyed button")[step];
    if (!button) return;
    event.preventDefault();
    button.click();
  });
  const tell = () => {
    document.querySelectorAll(".st-key-keyed button").forEach((button, step) => {
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
a slider, a list, a table that scrolls) it keeps that."""


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
