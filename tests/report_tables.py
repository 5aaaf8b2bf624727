"""The tables of a report, for tests."""

from html.parser import HTMLParser


class Tables(HTMLParser):
    """Tables of a page by the heading above them: rows of cells as text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._heading = ""
        self._open = ""

    def handle_starttag(self, tag, attrs):
        if tag in ("h2", "th", "td"):
            self._open = tag
        if tag == "h2":
            self._heading = ""
        elif tag == "tr":
            self.found.setdefault(self._heading, []).append([])
        elif tag in ("th", "td"):
            self.found[self._heading][-1].append("")

    def handle_endtag(self, tag):
        if tag == self._open:
            self._open = ""

    def handle_data(self, data):
        if self._open == "h2":
            self._heading += data
        elif self._open:
            self.found[self._heading][-1][-1] += data
