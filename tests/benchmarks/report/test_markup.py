from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.report.markup import Markup, join, tag


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_no_text_opens_an_element_or_leaves_its_attribute(text: str) -> None:
    made = tag("p", text, title=text)
    assert made.count("<") == made.count(">") == 2
    assert made.count('"') == 2


def test_markup_is_not_escaped_again() -> None:
    inner = tag("b", "a & b")
    assert tag("p", inner, "<") == "<p><b>a &amp; b</b>&lt;</p>"
    assert join("<", inner) == "&lt;<b>a &amp; b</b>"
    assert tag("p", Markup("<i>")) == "<p><i></p>"


def test_attributes_that_are_not_there_leave_no_trace() -> None:
    assert tag("a", hidden=False, id=None, data_x=0) == '<a data-x="0"></a>'
    assert tag("a", None, hidden=True) == "<a hidden></a>"


def test_void_elements_are_not_closed() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
