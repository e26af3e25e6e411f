"""The built site: its links, what it loads, its API, and the answers of its search."""

import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest

from tests.site import source_of_site as site
from tests.structure import source

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

# Questions of a stranger, and the pages of which one must be among the first three results.
QUESTIONS: dict[str, str] = {
    "how do I weigh classes?": "guides/own-models",
    "which loss for a ViT student of a CNN teacher?": "guides/taps which-method",
    "what does KD cost in memory?": "performance guides/training which-method",
    "teacher with another tokenizer": "guides/language",
    "resume after a crash": "guides/training",
    "distill on several GPUs": "guides/devices",
    "log to wandb": "guides/logging",
    "load a Hugging Face model": "guides/export",
    "detector": "guides/dense",
    "which method should I use?": "which-method",
    "use my own model": "guides/own-models",
    "features of different shape": "guides/taps",
    "train step with TrainState": "guides/one-loss",
    "teacher is too slow": "guides/caching",
    "PyTorch weights": "guides/export",
    "speech recognition CTC": "guides/speech",
    "reinforcement learning policy": "guides/control",
    "two teachers": "guides/schemes",
    "I know TRL": "guides/coming-from",
    "vocabulary does not fit into memory": "guides/language",
    "implement a new loss": "guides/add-a-loss",
    "FSP": "methods api/losses",
    "gain on CIFAR-100": "results",
    "deploy the student": "guides/export",
    "mean teacher EMA": "api/teachers guides/schemes methods",
    "soft_target_kl": "api/losses",
    "gradient accumulation": "guides/training",
    "loss is NaN": "guides/training",
    "freeze layers of the student": "guides/training",
    "install": "get-started",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, built strictly: a broken link, anchor or name is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=source.ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


class _Page(html.parser.HTMLParser):
    """Anchors, links and loaded files of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.add(found["href"])
        elif tag in ("script", "img") and found.get("src"):
            self.loaded.add(found["src"])


@pytest.fixture(scope="module")
def html_pages(built):
    """The pages of the site by their paths."""
    pages = [path for path in sorted(built.rglob("*.html")) if path.name != "404.html"]
    return {path: _Page(path.read_text(encoding="utf-8")) for path in pages}


def test_every_page_of_the_navigation_is_built(built, html_pages):
    for page in site.navigation():
        path = built / page.removesuffix(".md") / "index.html"
        assert (path if path in html_pages else built / page.replace("index.md", "index.html")) in html_pages


def test_every_link_leads_to_a_page_and_an_anchor(built, html_pages):
    broken = []
    for path, page in html_pages.items():
        for link in page.links | page.loaded:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = pathlib.Path(os.path.normpath(path.parent / urllib.parse.unquote(parts.path)))
            target = path if not parts.path else target / "index.html" if target.is_dir() else target
            anchors = html_pages[target].anchors if target in html_pages else set()
            if not target.is_file() or (parts.fragment and urllib.parse.unquote(parts.fragment) not in anchors):
                broken.append((str(path.relative_to(built)), link))
    assert broken == []


def test_links_to_the_repository_lead_to_files(built, html_pages):
    address = f"{site.load('names').repository()}/"
    missing = set()
    for page in html_pages.values():
        for link in page.links:
            kind, _, path = link.removeprefix(address).partition("/main/")
            if link.startswith(address) and kind in ("blob", "tree", "edit"):
                path = path.partition("#")[0]
                missing |= set() if (source.ROOT / path).exists() else {path}
    assert missing == set()


def test_pages_load_nothing_from_other_hosts(built, html_pages):
    for path, page in html_pages.items():
        assert not [link for link in page.loaded if urllib.parse.urlsplit(link).netloc], path
    for path in built.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", path.read_text(encoding="utf-8")), path


def test_the_api_has_an_anchor_for_every_name_and_no_remains_of_plain_text(built, html_pages):
    names = site.load("names")
    for page in sorted((site.DOCS / "api").glob("*.md")):
        path = built / "api" / ("" if page.stem == "index" else page.stem) / "index.html"
        assert not set(names.shown(page)) - html_pages[path].anchors, page
        text = re.sub(r"<pre.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"&gt;&gt;&gt;|={5}|<blockquote|``", text), page


@pytest.fixture(scope="module")
def answers(built):
    """The addresses that the site's own search worker finds for each question, best first."""
    if (node := shutil.which("node")) is None:
        pytest.skip("node, which runs the site's search, is not installed")
    worker = pathlib.Path(__file__).with_name("search.js")
    run = subprocess.run([node, worker, built], input=json.dumps(list(QUESTIONS)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dict(zip(QUESTIONS, json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_search_answers_a_question(question, answers):
    expected = {f"{page}/" for page in QUESTIONS[question].split()}
    assert expected & set(answers[question][:3]), answers[question][:6]
