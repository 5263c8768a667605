"""The web app: its pages and what surrounds them."""

import functools

import streamlit as st
from PIL import Image, ImageDraw

from exp_tools.app.pages import about, cases, evaluate, experiments, predict
from exp_tools.app.parts import frame
from exp_tools.app.parts.settings import Settings
from exp_tools.serving.predictor import DISCLAIMER

PAGES = {
    "Predict": predict.show,
    "Experiments": experiments.show,
    "Evaluate": evaluate.show,
    "Cases": cases.show,
    "About": about.show,
}


def run(settings: Settings) -> None:
    """Draw the page that was asked for, under the disclaimer."""
    st.set_page_config(page_title="Skin lesion experiments", page_icon=_icon(), layout="wide")
    pages = [
        st.Page(functools.partial(show, settings), title=title, url_path=title.lower() if place else "start")
        for place, (title, show) in enumerate(PAGES.items())
    ]
    first = pages[0]
    # The first page is at "/". Its name would be answered with "page not found", were there no page that leads there.
    by_name = st.Page(lambda: st.switch_page(first), title=first.title, url_path=first.title.lower())
    page = st.navigation([*pages, by_name], position="hidden")
    if page is by_name:
        page.run()
    frame.draw(pages)
    st.warning(DISCLAIMER, icon=":material/medical_information:")
    page.run()


def _icon() -> Image.Image:
    """A spot on skin, for the browser's tab; one of Streamlit's own would be fetched from the internet."""
    picture = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((2, 2, 62, 62), fill="#E8B89A")
    draw.ellipse((17, 20, 46, 47), fill="#6B3F2A")
    return picture
