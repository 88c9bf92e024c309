"""The page of the search: a form, and pictures with their scores. It runs no script and loads nothing but the thumbnails."""
from urllib import parse

from mcd_jax.html import document, el

POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
_STYLE = """
form { display: flex; flex-wrap: wrap; gap: 10px; margin: 0 0 10px; align-items: center; }
form input[type=text] { flex: 1 1 320px; font: inherit; padding: 8px 12px; border: 1px solid var(--line); border-radius: 8px; }
form button { font: inherit; padding: 8px 16px; border: 0; border-radius: 8px; background: var(--one); color: white; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 16px; }
.hits a { color: inherit; text-decoration: none; }
.hits figure { margin: 0; }
.hits img { width: 100%; height: 150px; object-fit: contain; border: 1px solid var(--line); border-radius: 8px; }
.hits figcaption { font-size: 12.5px; overflow-wrap: anywhere; color: var(--soft); }
.hits figcaption b { color: var(--ink); }
.chips { display: flex; flex-wrap: wrap; gap: 4px; }
.chips span { background: var(--back); border-radius: 6px; padding: 1px 6px; font-size: 11.5px; }
.wrong { color: var(--two); }
"""


def link(**question):
    """The address of a question: "/?q=red+apple"."""
    return "/?" + parse.urlencode({k: v for k, v in question.items() if v not in (None, "")}, errors="surrogatepass")


def page(title, about, question="", hits=None, asked="", problem=""):
    """The page, str.

    Args:
      title, about: of the index. question: text that stands in the field.
      hits: list of (row, name, score, words), words explaining the hit; None: nothing was asked.
      asked: what they answer. problem: a sentence, when a question was refused.
    """
    text = el("form", el("input", type="text", name="q", value=question, maxlength=1000, aria_label="what the picture shows",
                         placeholder="what the picture shows", autofocus="autofocus"),
              el("button", "Search", type="submit"), action="/", method="get")
    image = el("form", el("input", type="file", name="image", accept="image/*", required="required", aria_label="a picture"),
               el("button", "Search by picture", type="submit"), action="/", method="post", enctype="multipart/form-data")
    found = None
    if problem:
        found = el("p", problem, cls="wrong")
    elif hits is not None:
        found = [el("h3", asked), el("div", [_hit(*hit) for hit in hits], cls="hits")]
    return document(title, el("p", about, cls="lead"), {"search": ("Search", [text, image, found])}, _STYLE, POLICY)


def _hit(row, name, score, words):
    picture = el("img", src=f"/thumbnail/{row}", alt=name, loading="lazy")
    chips = el("div", [el("span", word) for word in words], cls="chips") if words else None
    return el("figure", el("a", picture, href=link(like=row), title="more like this"),
              el("figcaption", el("b", f"{score:.3f} "), name, chips))
