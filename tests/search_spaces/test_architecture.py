import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.architecture import RECEPTIVE_FIELD, Architecture, Geometry, frame_count

SMALL = Architecture(front_end="mel", front_width=24, frame_stride=2, width=32, heads=(1, 2), ffn_dims=(64, 48), kept_layers=(1, 6))
GEOMETRY = Geometry(
    head_dim=64,
    conv_dims=(32, 64, 128, 128, 128, 128, 128),
    conv_bias=True,
    front_norm="layer",
    norm_order="post",
    position_kernel=64,
    position_groups=16,
    normalize_input=True,
)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    sizes = st.integers(1, 5000)
    front_end = draw(st.sampled_from(("wave", "mel", "bc")))
    kept = sorted(draw(st.sets(st.integers(1, 24), min_size=front_end != "bc", max_size=6)))
    front_width = 8 * draw(sizes) if front_end == "bc" else draw(sizes)
    layer = st.lists(sizes, min_size=len(kept), max_size=len(kept)).map(tuple)
    return Architecture(
        front_end=front_end,
        front_width=front_width,
        frame_stride=draw(st.sampled_from((1, 2))) if kept else 1,
        width=draw(sizes) if kept else front_width,
        heads=draw(layer),
        ffn_dims=draw(layer),
        kept_layers=tuple(kept),
    )


def test_the_canonical_json_is_this_text() -> None:
    assert SMALL.to_json() == (
        '{"ffn_dims":[64,48],"frame_stride":2,"front_end":"mel","front_width":24,"heads":[1,2],"kept_layers":[1,6],"width":32}'
    )


def test_the_key_never_changes() -> None:
    assert SMALL.key == "49d020f8370f"


@given(architectures())
def test_json_round_trip(architecture: Architecture) -> None:
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture
    assert again.key == architecture.key


@given(architectures(), architectures())
def test_keys_are_equal_where_architectures_are(one: Architecture, other: Architecture) -> None:
    assert (one.key == other.key) == (one == other)


def test_the_order_of_fields_in_a_file_does_not_matter() -> None:
    fields = json.loads(SMALL.to_json())
    assert Architecture.from_dict(dict(reversed(fields.items()))).key == SMALL.key


def test_geometry_round_trip() -> None:
    assert Geometry.from_json(GEOMETRY.to_json()) == GEOMETRY
    wavlm = replace(GEOMETRY, relative_buckets=320, relative_distance=800)
    assert Geometry.from_json(wavlm.to_json()) == wavlm != GEOMETRY


def test_a_geometry_written_before_there_were_position_biases_loads() -> None:
    added = ("relative_buckets", "relative_distance", "family", "position_table", "mel_bins")
    fields = {name: value for name, value in json.loads(GEOMETRY.to_json()).items() if name not in added}
    assert len(fields) == 8
    assert Geometry.from_dict(fields) == GEOMETRY
    for broken in ({**fields, "width": 3}, {name: fields[name] for name in fields if name != "head_dim"}):
        with pytest.raises(ValueError, match="Geometry has the fields"):
            Geometry.from_dict(broken)


def test_students_drop_the_position_bias_and_nothing_else() -> None:
    assert replace(GEOMETRY, relative_buckets=320, relative_distance=800).of_students == GEOMETRY
    assert GEOMETRY.of_students == GEOMETRY


NONE: dict[str, object] = {"heads": (), "ffn_dims": (), "kept_layers": ()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"front_end": "raw"}, "'raw'; allowed are 'wave', 'mel' and 'bc'"),
        ({"frame_stride": 3}, "frame_stride is 3; allowed are 1 and 2"),
        ({"heads": (1,)}, "one value a layer"),
        (NONE, "at least one layer unless front_end is 'bc'"),
        ({"width": 0}, "positive"),
        ({"ffn_dims": (64, -1)}, "positive"),
        ({"kept_layers": (0, 1)}, "positive"),
        ({"kept_layers": (2, 2)}, r"\(2, 2\) must rise"),
        ({"front_end": "bc", "front_width": 36}, "front_width is 36; that of 'bc' is a multiple of 8"),
        ({"front_end": "bc", **NONE, "width": 24}, "frame_stride is 1"),
        ({"front_end": "bc", **NONE, "frame_stride": 1}, "the width is the front_width"),
        ({"front_end": "bc", **NONE, "heads": (1,)}, "one value a layer"),
    ],
)
def test_wrong_choices_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{}, {**json.loads(SMALL.to_json()), "depth": 2}])
def test_missing_and_unknown_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Architecture has the fields"):
        Architecture.from_dict(fields)


def test_frames() -> None:
    assert [frame_count(n) for n in (0, 399, 400, 719, 720, 16_000, 16_080)] == [0, 0, 1, 1, 2, 49, 50]


@given(st.integers(RECEPTIVE_FIELD, 10**6))
def test_a_window_holds_its_last_frame_and_not_one_more(samples: int) -> None:
    end = 320 * (frame_count(samples) - 1) + RECEPTIVE_FIELD
    assert end <= samples < end + 320


def test_front_dims_scale_with_the_front_width() -> None:
    wave = replace(SMALL, front_end="wave")
    assert GEOMETRY.front_dims(replace(wave, front_width=128)) == GEOMETRY.conv_dims
    assert GEOMETRY.front_dims(replace(wave, front_width=32)) == (8, 16, 32, 32, 32, 32, 32)
    assert GEOMETRY.front_dims(replace(wave, front_width=1)) == (1, 1, 1, 1, 1, 1, 1)
    assert GEOMETRY.front_dims(SMALL) == (24, 24)
