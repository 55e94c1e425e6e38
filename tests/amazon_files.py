"""Stand-ins of the Amazon reviews in the two forms that their authors publish."""

from pathlib import Path

DOMAINS = ("books", "dvd", "electronics", "kitchen")
KINDS = ("negative", "positive", "unlabeled")
FOLDERS = {"kitchen": "kitchen_&_housewares"}
REVIEW = """<review>
<unique_id>
0312355645:{number}
</unique_id>
<rating>
1.0
</rating>
<title>
{kind} title
</title>
<review_text>
{text}
</review_text>
</review>
"""


def text_of(domain: str, kind: str, number: int) -> str:
    """A review as a reader sees it. It has a letter beyond ASCII, marks of markup, and two lines."""
    word = {"negative": "bad", "positive": "good"}.get(kind, ("fine", "poor")[number % 2])
    return f"the {domain} was {word} & <b>caf\u00e9</b> {number}\n\nvery {word}"


def write_texts(root: Path, count: int = 20) -> Path:
    """``sorted_data_acl``: every other review is in Latin-1, and an entity stands in each."""
    for domain in DOMAINS:
        folder = root / FOLDERS.get(domain, domain)
        folder.mkdir(parents=True)
        for kind in KINDS:
            name = "book.unlabeled" if (domain, kind) == ("books", "unlabeled") else f"{kind}.review"
            texts = [text_of(domain, kind, number).replace(" & ", " &amp; ") for number in range(count)]
            whole = [
                REVIEW.format(number=number, kind=kind, text=text).encode(("utf-8", "latin-1")[number % 2])
                for number, text in enumerate(texts)
            ]
            (folder / name).write_bytes(b"".join(whole))
    return root


def write_counts(root: Path, count: int = 20) -> Path:
    """``processed_acl``: lines of counts, the reviews to test among them."""
    for domain in DOMAINS:
        (root / domain).mkdir(parents=True)
        for kind in KINDS:
            lines = []
            for number in range(count):
                label = kind if kind != "unlabeled" else ("negative", "positive")[number % 2]
                word = {"negative": "bad", "positive": "good"}[label]
                counts = {"the": 3, word: 2, f"the_{word}": 1, domain: 1, f"only_{domain}_{kind}_{number}": 1, "a:b": 1}
                lines.append(" ".join([*(f"{key}:{value}" for key, value in counts.items()), f"#label#:{label}"]))
            (root / domain / f"{kind}.review").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
