"""The web app's script: Streamlit runs it from top to bottom on each interaction."""

import functools
import sys

import streamlit as st
from PIL import Image, ImageDraw

from exp_tools.app.pages import about, evaluate, experiments, predict
from exp_tools.app.parts.settings import Settings
from exp_tools.serving.predictor import DISCLAIMER

PAGES = {
    "Predict": predict.show,
    "Experiments": experiments.show,
    "Evaluate": evaluate.show,
    "About": about.show,
}


def run(settings: Settings) -> None:
    """Draw the page that was asked for, under the disclaimer."""
    st.set_page_config(page_title="Skin lesion experiments", page_icon=_icon(), layout="wide")
    pages = [
        st.Page(functools.partial(show, settings), title=title, url_path=title.lower()) for title, show in PAGES.items()
    ]
    page = st.navigation(pages, position="hidden")
    with st.container(horizontal=True, gap="small"):  # Streamlit's own menu hides the pages from phones
        for one in pages:
            st.page_link(one)
    st.warning(DISCLAIMER, icon=":material/medical_information:")
    page.run()


def _icon() -> Image.Image:
    """A spot on skin, for the browser's tab; one of Streamlit's own would be fetched from the internet."""
    picture = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((2, 2, 62, 62), fill="#E8B89A")
    draw.ellipse((17, 20, 46, 47), fill="#6B3F2A")
    return picture


if __name__ == "__main__":
    run(Settings.from_text(sys.argv[1]))
