"""Pages with measured numbers in them: no number is typed, a script puts it between two marks."""

from pathlib import Path

from tinydiff.files import write_atomically


def replace_block(path, name, text):
    """Put `text` between <!-- name:begin --> and <!-- name:end --> in the page at `path`.

    True if the page has both marks, else False and nothing is written. The page changes whole or
    not at all. Raises ValueError where a mark stands twice or the end comes before the beginning.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if not Path(path).is_file():
        return False
    page = Path(path).read_bytes().decode("utf-8")        # bytes: line ends stay as they are
    if begin not in page and end not in page:
        return False
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"{path}: expected {begin} once and then {end} once; mend the page")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    write_atomically(path, f"{before}{begin}\n{text.strip()}\n{end}{after}".encode())
    return True
