"""The frame around every page: navigation, style, and what Streamlit's own elements lack for screen readers."""

from collections.abc import Sequence

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from exp_tools.app.parts import charts

STYLE = """
<style>
[data-testid=stHeader] { background: transparent; left: auto; right: 0; width: auto; }
[data-testid=stHeader], [data-testid=stHeader] * { pointer-events: none; }
[data-testid=stHeader] button, [data-testid=stHeader] button * { pointer-events: auto; }
[data-testid=stMainBlockContainer] { padding-top: .8rem; }
.st-key-pages { padding-right: 3rem; }
[data-testid=stHeading] h1 { padding: .2rem 0 .3rem; }
[data-testid=stHeading] h2 { padding: .4rem 0 .3rem; }
[data-testid=stCaptionContainer] { color: inherit; opacity: .85; }
[data-testid=stMarkdownContainer] table { display: block; overflow-x: auto; }
[data-testid=stFileUploaderDropzone]::before { content: "Drop dermoscopic images here, or"; font-weight: 600;
  flex: none; }
[class*=st-key-square] canvas, [class*=st-key-square] svg { max-width: 100% !important; height: auto !important; }
[data-testid=stSliderThumbValue] p, button[data-selected=true] p { color: INK; }
@media (max-width: 480px) {
  .st-key-pages { gap: 0; padding-right: 2.2rem; }
  [data-testid=stStatusWidget] { display: none; }
  [data-testid=stAlertContainer] p { font-size: .9rem; line-height: 1.35; }
}
</style>
"""
"""Captions and chosen values are in the colour of text (INK), since Streamlit's have less than 4.5:1; wide tables of
the model card scroll by themselves; square charts shrink as a whole on a phone."""

SCRIPT = """
<script>
(() => {
  if (window.expToolsFrame) return;
  window.expToolsFrame = true;
  const set = (element, name, value) => {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const complete = () => {
    const pages = document.querySelector(".st-key-pages");
    if (pages) {
      set(pages, "role", "navigation");
      set(pages, "aria-label", "Pages");
      const links = [...pages.querySelectorAll("a")];
      const named = (name) => links.find((link) => link.getAttribute("href") === name);
      const current = named(location.pathname.split("/").pop()) || named("");  // the first page has no name
      for (const link of links) {
        if (link === current) set(link, "aria-current", "page");
        else link.removeAttribute("aria-current");
      }
    }
    for (const area of document.querySelectorAll("[data-testid=stFileUploaderDropzone]")) set(area, "role", "group");
    for (const table of document.querySelectorAll("[data-testid=stMarkdownContainer] table")) {
      if (table.scrollWidth > table.clientWidth) set(table, "tabindex", "0");
    }
  };
  let asked = false;
  const later = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; complete(); });
  };
  new MutationObserver(later).observe(document.body, { childList: true, subtree: true });
  addEventListener("resize", later);
  complete();
})();
</script>
"""
"""Marks the links as navigation and the current one, makes the drop area a group (Streamlit calls it presentation and
names it at once), and lets the keyboard scroll wide tables."""


def draw(pages: Sequence[StreamlitPage]) -> None:
    """Draw the links to all pages; Streamlit's own menu hides them from phones."""
    st.html(STYLE.replace("INK", charts.ink()))
    st.html(SCRIPT, unsafe_allow_javascript=True)
    with st.container(horizontal=True, gap="small", key="pages"):
        for page in pages:
            st.page_link(page)


def head(title: str, purpose: str) -> None:
    """Draw a page's heading, and one sentence on what the page is for."""
    st.title(title, anchor=False)
    st.markdown(purpose)
