"""Own texts: files of columns, read right or refused with the line."""

import json

import numpy as np
import pytest

from subtune_jax.data.tables import read_table, table
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.errors import InputError
from tests.data.test_tokenizer_files import folder_of


def file_of(root, content, name="texts.csv"):
    data = content if isinstance(content, bytes) else content.encode()
    (root / name).write_bytes(data)
    return root / name


GOOD = 'review,label\n"a, b",pos\n"two\nlines",neg\nc,pos\n'


def test_texts_and_classes_by_name(tmp_path):
    read = read_table(file_of(tmp_path, GOOD), "review", "label")
    assert read.texts == [("a, b",), ("two\nlines",), ("c",)]
    assert read.classes == ("neg", "pos") and read.labels.tolist() == [1, 0, 1]
    assert read.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("id;b;a;label\n1;x y;é;2\n2;z;w;10\n3;q;r;2", "a.csv"),
        ("id\tb\ta\tlabel\r\n1\tx y\té\t2\r\n2\tz\tw\t10\r\n3\tq\tr\t2\r\n", "a.tsv"),
        ("\ufeffa,b,label\né,x y,2.0\nw,z,10.0\n\nr,q,2.0\n", "a.csv"),
        (
            '{"a": "é", "b": "x y", "label": 2}\n\n{"label": 10.0, "a": "w", "b": "z"}\n'
            '{"a": "r", "b": "q", "label": "2"}\n',
            "a.jsonl",
        ),
    ],
)
def test_pairs_and_whole_numbers_in_every_format(tmp_path, content, name):
    read = read_table(file_of(tmp_path, content, name), ("a", "b"), "label")
    assert read.texts == [("é", "x y"), ("w", "z"), ("r", "q")]
    assert read.classes == ("2", "10") and read.labels.tolist() == [0, 1, 0]


def test_numbers_that_are_not_whole_are_a_regression(tmp_path):
    read = read_table(file_of(tmp_path, "a,y\nb,1\nc,2.5\n"), "a", "y")
    assert read.labels.tolist() == [[1.0], [2.5]] and read.classes == ()
    assert read.labels.dtype == np.float32


def test_a_part_without_a_class_keeps_the_numbers_of_the_others(tmp_path):
    file = file_of(tmp_path, "a,y\nb,cat\nc,ant\n")
    read = read_table(file, "a", "y", classes=("ant", "bee", "cat"))
    assert read.labels.tolist() == [2, 0] and read.classes == ("ant", "bee", "cat")
    with pytest.raises(InputError, match="label in line 2 of .* 'cat': expected.*ant"):
        read_table(file, "a", "y", classes=("ant", "bee"))
    numbers = file_of(tmp_path, "a,y\nb,2\n")
    assert read_table(numbers, "a", "y", classes=(1, 2, 3)).labels.tolist() == [1]
    booleans = file_of(
        tmp_path, '{"a": "b", "y": true}\n{"a": "b", "y": false}', "b.jsonl"
    )
    assert read_table(booleans, "a", "y").classes == ("false", "true")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\na,b\n,c\n", "line 3 of .* has no text in 'text'"),
        ("text,label\na,b\n  ,c\n", "line 3 of .* has no text in 'text'"),
        ("text,label\na,b\nd,\n", "line 3 of .* has no label in 'label': ''"),
        ("text,label\na,1\nd,nan\n", "line 3 of .* has no label in 'label': 'nan'"),
        (
            "text,label\na,b,c\n",
            "line 2 of .* has 3 fields, and the header 2: a text wi",
        ),
        ("text,label\na\n", "line 2 of .* has 1 fields, and the header 2"),
        ('text,label\n"a,b\nc,d\n', "line 3 of .*: unexpected end of data"),
        ("text,label\na,pos\nb,Pos\n", "labels 'Pos' and 'pos', which differ in case"),
        (
            "txt,label\na,b\n",
            "unknown column of .* 'text': expected one of txt, label; did",
        ),
        ("text,text,label\na,b,c\n", "has 2 columns 'text'"),
        ("", "unknown column of .* 'text'"),
        ("text,label\n", "has no rows"),
        (
            b"text,label\na,b\ncaf\xe9,c\n",
            "line 3 of .* is not in UTF-8: save the file",
        ),
        ("text,label\na,b".encode("utf-16"), "line 1 of .* is not in UTF-8"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_said_by_line(tmp_path, content, said):
    with pytest.raises(InputError, match=said) as error:
        read_table(file_of(tmp_path, content), "text", "label")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"}', "column of line 2 of .* 'label': expected one of text"),
        ('{"text": null, "label": 1}', "line 2 of .* is no text: None"),
        ('{"text": 5, "label": 1}', "line 2 of .* is no text: 5"),
        ('{"text": ["a", "b"], "label": 1}', "line 2 of .* has a text in parts"),
        ('{"text": "a", "label": null}', "line 2 of .* has no label in 'label'"),
        ('{"text": "a", "label": [1]}', "line 2 of .* has a list as label"),
        ('{"text": "a", "label": NaN}', "line 2 of .* has no label in 'label': 'nan'"),
        ('{"text": "\\ud800", "label": 1}', "line 2 of .* half of a surrogate pair"),
        ("[1]", "line 2 of .* is a JSON list: expected an object"),
        ("{", "line 2 of .* is no JSON object"),
    ],
)
def test_a_line_of_json_that_cannot_be_read_is_said(tmp_path, line, said):
    content = '{"text": "a", "label": 1}\n' + line
    with pytest.raises(InputError, match=said):
        read_table(file_of(tmp_path, content, "a.jsonl"), "text", "label")


def test_what_is_no_table_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot read .*nowhere.csv: No such file"):
        read_table(tmp_path / "nowhere.csv", "text", "label")
    with pytest.raises(
        InputError, match="unknown kind of table '.xlsx': expected one o"
    ):
        read_table(file_of(tmp_path, "a", "a.xlsx"), "text", "label")
    with pytest.raises(InputError, match="text must be one column or two, got 3"):
        read_table(file_of(tmp_path, GOOD), ("a", "b", "c"), "label")


def test_a_table_of_token_ids(tmp_path):
    words = tokenizer(folder_of(tmp_path))
    lines = [
        {"a": "paris", "b": "is", "y": "no"},
        {"a": "is", "b": "paris", "y": "yes"},
    ]
    content = "\n".join(map(json.dumps, lines))
    file = file_of(tmp_path, content, "pairs.jsonl")
    data = table(file, ("a", "b"), "y", words)
    assert data.x["input_ids"][:].tolist()[0][:5] == [2, 5, 3, 6, 3]
    assert data.x["token_type_ids"][:].tolist()[0][:5] == [0, 0, 0, 1, 1]
    assert data.classes == ("no", "yes") and data.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            "3.5 2.25 N/A 1",
            "line 4 of .* the label 'N/A', and other lines have numbers",
        ),
        ("1 0 NA", "line 4 of .* 'NA'.*give classes= if all are names"),
        ("1,5 2 3", "line 2 of .* the label '1,5'"),
        ("None 1", "line 2 of .* the label 'None'"),
        ("5 1e300", "line 3 of .* the label '1e300'"),
    ],
)
def test_one_label_that_is_no_number_among_numbers_is_said(tmp_path, labels, said):
    rows = [f'a,"{label}"' for label in labels.split()]
    file = file_of(tmp_path, "text,label\n" + "\n".join(rows))
    with pytest.raises(InputError, match=said):
        read_table(file, "text", "label")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ("01 1 1", ("01", "1")),  # codes
        ("-1 1 -1", ("-1", "1")),
        ("C C++ C#", ("C", "C#", "C++")),
        ("NA DE FR", ("DE", "FR", "NA")),
        ("1.0 0.0 1.0", ("0", "1")),
    ],
)
def test_labels_are_told_apart(tmp_path, labels, classes):
    rows = [f"a,{label}" for label in labels.split()]
    file = file_of(tmp_path, "text,label\n" + "\n".join(rows))
    if labels.startswith("01"):
        with pytest.raises(InputError, match="line 2 of .* the label '01'"):
            read_table(file, "text", "label")
        assert read_table(file, "text", "label", classes=classes).classes == classes
        return
    assert read_table(file, "text", "label").classes == classes
    assert read_table(file, "text", "label", classes=list(classes)).classes == classes


def test_whole_numbers_may_be_a_regression(tmp_path):
    file = file_of(tmp_path, "text,label\na,1\nb,5\n")
    read = read_table(file, "text", "label", regression=True)
    assert read.labels.tolist() == [[1.0], [5.0]] and read.classes == ()


def test_a_stray_quote_in_a_tsv_is_said(tmp_path):
    content = 'text\tlabel\n"The film is bad\tneg\nfine\tpos\nhe called it "\tpos\n'
    with pytest.raises(InputError, match="line 4 of .* ends a text of several lines"):
        read_table(file_of(tmp_path, content, "a.tsv"), "text", "label")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": 5, "label": "y"}, "text must name a column, got 5"),
        ({"text": "a", "label": ("y",)}, "label must name a column"),
        ({"text": "a", "label": "y", "classes": 5}, "classes must be a list of diff"),
        ({"text": "a", "label": "y", "classes": ["b", "b"]}, "classes must be a list"),
    ],
)
def test_arguments_of_other_types_are_said(tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        read_table(file_of(tmp_path, "a,y\nb,c\n"), **given)
