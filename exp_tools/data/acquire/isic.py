"""Download images and their table from the ISIC Archive by a query or by collections, with isic-cli."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import requests

from exp_tools.errors import UserError

ARCHIVE = "https://api.isic-archive.com"
COMMAND = (sys.executable, "-m", "isic_cli.cli", "--guest", "--no-version-check")
TABLE = "metadata.csv"
"""What isic-cli writes last: with it a download is whole."""


def download_query(query: str, store: Path) -> Path:
    """The folder that holds what the archive has for a query; it is asked once, and what came before a stop is kept.

    Parameters
    ----------
    query : a search of the archive (`diagnosis_3:"Nevus" AND sex:male`), or numbers of collections (`212,249`)
    store : where downloads are kept

    Raises
    ------
    UserError
        isic-cli is not installed, the archive cannot be reached, or the download fails.
    """
    numbers = re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", query)
    name = re.sub(r"\W+", "-", query).strip("-")[:40]
    target = store / f"isic-{name}-{hashlib.sha256(query.encode()).hexdigest()[:8]}"
    if (target / TABLE).is_file():
        return target
    if importlib.util.find_spec("isic_cli") is None:
        raise UserError("data.query needs isic-cli, which is not installed: pip install -e '.[isic]'")
    try:
        requests.get(f"{ARCHIVE}/api/v2/images/search/", params={"limit": 1}, timeout=30).raise_for_status()
    except requests.RequestException as error:
        raise UserError(
            f"the ISIC Archive cannot be reached ({ARCHIVE}: {type(error).__name__}); try again later, or set data.dir "
            "to a folder that isic-cli filled elsewhere"
        ) from error
    target.mkdir(parents=True, exist_ok=True)
    asked = ["--collections", re.sub(r"\s", "", query)] if numbers else ["--search", query]
    command = [*COMMAND, "image", "download", *asked, str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode or not (target / TABLE).is_file():
        why = [line.strip() for line in done.stderr.splitlines() if "rror" in line][-1:] or done.stderr.splitlines()[
            -1:
        ]
        reason = "".join(why) or f"status {done.returncode}"
        raise UserError(
            f"isic-cli could not download data.query {query!r}: {reason}. What came is kept in {target}; the same "
            "command goes on from there"
        )
    if not any(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in target.iterdir()):
        shutil.rmtree(target)
        raise UserError(f"the ISIC Archive has no image for data.query {query!r}")
    return target
