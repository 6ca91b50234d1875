"""Delimited and JSON-lines files: every row accepted or refused with its line."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.files import InputError
from shards.records import Refused, listed, parse_records, python_literal, read_records
from shards.tables import DELIMITERS, read_table

COLUMNS = ("image", "caption")


def read(tmp_path, content: str | bytes, **options):
    path = tmp_path / "c.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, COLUMNS, **options)


def captions(table) -> dict[int, str]:
    return {row.line: row.fields["caption"] for row in table.rows if not isinstance(row, Refused)}


def reasons(table) -> dict[int, str]:
    return {row.line: row.reason for row in table.refused}


def test_an_unquoted_comma_refuses_its_row(tmp_path):
    content = 'image,caption\n1.jpg,A dog, wet and happy\n2.jpg,A cat\n3.jpg,"Two men, one ball"\n'
    table = read(tmp_path, content)
    assert captions(table) == {3: "A cat", 4: "Two men, one ball"}
    assert reasons(table) == {2: "3 fields, the header names 2 (a text with ',' stands in quotes)"}


def test_a_quote_that_is_not_closed_costs_its_own_row_only(tmp_path):
    lines = ["image,caption", *(f"{n}.jpg,caption {n}" for n in range(2, 2002))]
    lines[100] = '101.jpg,"Hello world he said'
    table = read(tmp_path, "\n".join(lines))
    assert len(table.rows) == 2000 and len(captions(table)) == 1999
    assert reasons(table) == {101: "a quote is not closed"}
    lines[1000] = '1001.jpg,he said so"'  # closes it, 900 rows further on
    table = read(tmp_path, "\n".join(lines))
    assert reasons(table) == {101: "a quote is not closed: it would swallow line 102"}
    assert captions(table)[1001] == 'he said so"'
    lines[500] = '501.jpg,A "red" car'
    assert reasons(read(tmp_path, "\n".join(lines))) == {101: "a quote is not closed"}


def test_a_text_over_several_lines_is_one_row(tmp_path):
    content = 'image,caption\n1.jpg,"Hello,\nworld, you\n\nthere"\n2.jpg,"a ""b"" c"\n'
    assert captions(read(tmp_path, content)) == {2: "Hello,\nworld, you\n\nthere", 6: 'a "b" c'}


def test_texts_of_several_lines_may_be_the_only_column(tmp_path):
    path = tmp_path / "posts.csv"
    path.write_text('text\n"Bob is\nin Oslo"\nAnn\n')
    rows = read_table(path, ["text"]).accepted()
    assert [row.fields["text"] for row in rows] == ["Bob is\nin Oslo", "Ann"]


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    path = tmp_path / "posts.csv"
    path.write_bytes("text\nÅse\n".encode("utf-8-sig") + b"\xff\n")
    table = read_table(path, ["text"], encoding=encoding)
    assert table.columns == ("text",) and len(table.refused) == 1


@pytest.mark.parametrize("name", DELIMITERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_are_detected(tmp_path, name, end):
    mark = DELIMITERS[name]
    lines = [mark.join(("id", "image", "caption")), mark.join(("7", "1.jpg", "a b: c")), ""]
    table = read(tmp_path, end.join(lines))
    assert table.delimiter == mark and captions(table) == {2: "a b: c"}
    assert captions(read(tmp_path, end.join(lines), delimiter=name)) == {2: "a b: c"}


def test_a_line_that_names_the_delimiter(tmp_path):
    assert captions(read(tmp_path, "sep=;\nimage;caption\n1.jpg;a, b\n")) == {3: "a, b"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_are_detected(tmp_path, encoding):
    content = "image,caption\nü.jpg,Zoë\u2028in Łódź\n".encode(encoding)
    assert captions(read(tmp_path, content)) == {2: "Zoë\u2028in Łódź"}


def test_other_encodings_are_named(tmp_path):
    content = "image,caption\n1.jpg,café\n2.jpg,bar\n".encode("cp1252")
    table = read(tmp_path, content)
    assert reasons(table) == {2: "byte 0xe9 is no UTF-8; --encoding names another"}
    assert captions(table) == {3: "bar"}
    assert captions(read(tmp_path, content, encoding="cp1252")) == {2: "café", 3: "bar"}
    with pytest.raises(InputError, match="--encoding latin-99: unknown"):
        read(tmp_path, content, encoding="latin-99")
    with pytest.raises(InputError, match=r"byte 0xe9 at position 23 is no ascii"):
        read(tmp_path, content, encoding="ascii")
    with pytest.raises(InputError, match="utf-16-le"):
        read(tmp_path, "image,caption\n".encode("utf-16-le"))


@pytest.mark.parametrize("content", ["", "\n", "picture,text\n1,2\n", "image\n", "image:caption\n"])
def test_a_header_that_is_not_there(tmp_path, content):
    with pytest.raises(InputError, match="the header must name `image` and `caption`, separated"):
        read(tmp_path, content)


def test_columns_named_twice_and_odd_delimiters(tmp_path):
    with pytest.raises(InputError, match="names `caption` twice"):
        read(tmp_path, "image,caption,caption\n")
    with pytest.raises(InputError, match="--delimiter ab: comma, tab, semicolon, pipe, or one"):
        read(tmp_path, "image,caption\n", delimiter="ab")


def test_accepted_lists_the_first_twenty_and_counts_the_rest(tmp_path):
    table = read(tmp_path, "image,caption\n" + "1.jpg\n" * 23 + "1.jpg,a\n")
    with pytest.raises(InputError) as error:
        table.accepted()
    lines = str(error.value).splitlines()
    assert lines[0].endswith("c.csv: 23 of 24 rows cannot be read:")
    assert lines[1] == "  line 2: 1 field, the header names 2"
    assert len(lines) == 22 and lines[-1] == "  and 3 more"
    assert listed([]) == ""


def test_json_lines_are_accepted_or_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"t": "a\u2028b"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{good}\n\n[1]\n{{\n{good}".encode() + b"\n{\xff}\n")
    rows = read_records(path)
    assert [row.line for row in rows] == [1, 3, 4, 5, 6]
    assert [row.fields["t"] for row in rows if not isinstance(row, Refused)] == ["a\u2028b"] * 2
    refused = [row.reason.partition(" (")[0] for row in rows if isinstance(row, Refused)]
    assert refused == [
        "not a JSON object",
        "not valid JSON",
        "byte 0xff at position 1 is no UTF-8; convert the file",
    ]


def test_all_damaged_lines_are_listed_with_what_the_reader_finds(tmp_path):
    """A bad byte, a line that does not parse and one that the reader refuses, in one message."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf1\r\n\xff\n(\n-4\n5\n \r\n\n")

    def positive(row: int, number: int) -> tuple[int, int]:
        if number < 0:
            raise InputError(f"{number} is negative")
        return row, number

    records = read_records(path, python_literal)
    assert [record.line for record in records] == [1, 2, 3, 4, 5]
    with pytest.raises(InputError) as caught:
        parse_records(path, records, positive)
    assert str(caught.value).split("\n  ") == [
        f"{path}: 3 of 5 rows cannot be read:",
        "line 2: byte 0xff at position 0 is no UTF-8; convert the file",
        "line 3: not a Python literal",
        "line 4: -4 is negative",
    ]
    path.write_text("1\n\n5\n\n")
    assert parse_records(path, read_records(path, python_literal), positive) == [(0, 1), (1, 5)]
    whole = read_records(path, python_literal, gaps=False)
    assert whole == [(1, 1), (2, "not a Python literal"), (3, 5)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_inside_quotes_stay_as_they_are(tmp_path, end):
    """So that positions in a text are those of the file; Python's csv module agrees."""
    content = end.join(["image,caption", f'a.jpg,"one{end}two"', 'b.jpg,"x, y"', "c.jpg,z", ""])
    fields = [tuple(row.fields.values()) for row in read(tmp_path, content).accepted()]
    assert fields == [("a.jpg", f"one{end}two"), ("b.jpg", "x, y"), ("c.jpg", "z")]
    assert fields == list(map(tuple, csv.reader(io.StringIO(content, newline=""))))[1:]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 99), TEXT), max_size=8), st.sampled_from(",;\t|"))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows, mark):
    """Property: a well-formed file has no refused row, unless a text looks like rows itself."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=mark, lineterminator="\n")
    writer.writerow(COLUMNS)
    expected = [(f"{number}.jpg", text) for number, text in rows]
    writer.writerows(expected)
    table = read(tmp_path_factory.mktemp("t"), buffer.getvalue())
    assert [tuple(row.fields.values()) for row in table.accepted()] == expected


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from('ab.jpg,"\n\r;\t \ud8ff\u2028é'), max_size=60))
def test_no_line_is_lost(tmp_path_factory, text):
    """Property: every line that is not empty is in one row, accepted or refused."""
    content = b"image,caption\n" + text.encode("utf-8", "surrogatepass")
    table = read(tmp_path_factory.mktemp("t"), content)
    lines = text.split("\n")
    begins = [row.line for row in table.rows] + [len(lines) + 2]
    assert begins == sorted(set(begins))
    covered = set()
    for row, following in zip(table.rows, begins[1:], strict=True):
        span = 1
        if not isinstance(row, Refused):
            span += sum(field.count("\n") for field in row.fields.values())
        assert row.line + span <= following
        covered |= set(range(row.line, row.line + (span if not isinstance(row, Refused) else 99)))
    for number, line in enumerate(lines, start=2):
        assert number in covered or not line.strip()
