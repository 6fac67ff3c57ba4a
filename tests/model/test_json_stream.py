import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmask.data import json_stream
from polarmask.data.json_stream import MissingListError, read_lists

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.fixed_dictionaries(
    {"images": st.lists(ANYTHING, max_size=5), "annotations": st.lists(ANYTHING, max_size=5)},
    optional={"info": ANYTHING, "licenses": ANYTHING},
)


def read(path, *keys):
    return list(read_lists(path, keys))


def same(one, other):
    return json.dumps(one) == json.dumps(other)  # NaN differs from itself


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "a.json"


@given(
    document=OBJECTS,
    chunk=st.integers(1, 9),
    indent=st.none() | st.integers(0, 2),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    ascii_only=st.booleans(),
)
def test_items_are_those_of_json_loads_wherever_the_window_ends(
    path, document, chunk, indent, encoding, ascii_only
):
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode(encoding, "surrogatepass"))
    expected = json.loads(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        found = read(path, "images", "annotations")
    for key in ("images", "annotations"):
        assert same([item for of, item in found if of == key], expected[key])
    in_file = [key for key in expected if key in ("images", "annotations")]
    assert [key for key in in_file for _ in expected[key]] == [key for key, _ in found]


@given(document=OBJECTS, data=st.data())
def test_a_text_is_refused_where_json_loads_refuses_it(path, document, data):
    text = json.dumps(document)
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(
        st.sampled_from([text[:place], text[:place] + text[place + 1 :], text + "x", text + "{}"])
    )
    path.write_text(damaged)
    try:
        expected = json.loads(damaged)
    except ValueError:
        with pytest.raises(ValueError, match="character"):
            read(path, "images", "annotations")
    else:
        lists = isinstance(expected, dict) and [
            isinstance(expected.get(key), list) for key in ("images", "annotations")
        ]
        if lists == [True, True]:
            assert len(read(path, "images", "annotations")) == sum(
                len(expected[key]) for key in ("images", "annotations")
            )
        else:
            with pytest.raises(MissingListError):
                read(path, "images", "annotations")


def test_an_error_says_at_which_character(path):
    path.write_text('{"images": [1, 2, ?]}')
    with pytest.raises(ValueError, match="at character 18"):
        read(path, "images")


def test_what_is_no_number_is_read_as_such(path):
    path.write_text('{"images": [NaN, -Infinity, 1e999]}')
    values = [item for _, item in read(path, "images")]
    assert math.isnan(values[0])
    assert values[1:] == [-math.inf, math.inf]


@pytest.mark.parametrize("text", ["1", "1.5", "1e+5", "-0", "12E-3", "true", "-Infinity"])
def test_a_value_at_the_end_of_the_window_is_read_whole(path, monkeypatch, text):
    monkeypatch.setattr(json_stream, "_CHUNK", 1)
    path.write_text(f'{{"images": [{text}, {text}]}}')
    assert read(path, "images") == [("images", json.loads(text))] * 2


def test_memory_does_not_grow_with_the_file(path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 12)
    peaks = []
    for count in (5_000, 20_000):
        path.write_text(json.dumps({"images": [{"id": n, "name": "x" * 40} for n in range(count)]}))
        tracemalloc.start()
        assert sum(1 for _ in read_lists(path, ["images"])) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < path.stat().st_size / 5
