"""Quality, Semantic and Total of VBench against the official formula; what is missing is never taken for 0."""

import json

import pytest

from eval.vbench_scores import DIMENSIONS, QUALITY, Score, read_scores, table, total_scores
from vidgen.errors import InputError


def everything(value=lambda dimension: dimension.high):
    return {name: Score(value(dimension)) for name, dimension in DIMENSIONS.items()}


def test_totals_are_those_of_the_official_formula():
    best = total_scores(everything())
    assert (best.quality, best.semantic, best.total) == pytest.approx((1, 1, 1))
    worst = total_scores(everything(lambda dimension: dimension.low))
    assert (worst.quality, worst.semantic, worst.total) == pytest.approx((0, 0, 0))
    # Dynamic degree weighs a half of 6.5; Quality four fifths of the Total.
    lively = total_scores(everything(lambda dimension: dimension.low) | {"dynamic_degree": Score(1.0)})
    assert lively.quality == pytest.approx(0.5 / 6.5)
    assert lively.total == pytest.approx(0.8 * 0.5 / 6.5)
    some = total_scores(everything() | {"scene": Score(0.4111), "subject_consistency": Score(0.5731)})
    assert some.quality == pytest.approx(6 / 6.5)
    assert some.semantic == pytest.approx(8.5 / 9)
    assert some.total == pytest.approx((4 * 6 / 6.5 + 8.5 / 9) / 5)


def test_a_missing_dimension_makes_the_sums_incomplete_and_never_zero():
    scores = everything()
    del scores["color"]
    totals = total_scores(scores)
    assert totals.quality == pytest.approx(1)
    assert totals.semantic is totals.total is None
    assert totals.missing == ("color",)
    printed = table(scores, totals)
    assert [line.split()[-1] for line in printed.splitlines()[-3:]] == ["1.0000", "incomplete", "incomplete"]
    assert total_scores({}).quality is None


def test_failed_clips_stay_in_the_denominator():
    scores = everything() | {"color": Score(1.0, scored=3, expected=4), "scene": Score(0.4111, 0, 5)}
    totals = total_scores(scores)
    assert totals.normalised["color"] == pytest.approx(0.75)
    assert totals.normalised["scene"] == 0
    assert totals.semantic == pytest.approx((7 + 0.75) / 9)
    # A raw score below the range is not made better by missing clips.
    assert Score(0.5, 1, 2).normalised(QUALITY["temporal_flickering"]) == pytest.approx((0.5 - 0.6293) / (1 - 0.6293))
    assert "3 of 4" in table(scores, totals)


def test_scores_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(InputError, match="percentages"):
        total_scores({"color": Score(87.0)})
    with pytest.raises(InputError, match="is nan"):
        total_scores({"color": Score(float("nan"))})
    with pytest.raises(InputError, match="no dimension beauty"):
        total_scores({"beauty": Score(0.5)})
    with pytest.raises(InputError, match="6 of 5"):
        total_scores({"color": Score(0.5, 6, 5)})


def test_results_files_are_read_one_by_one_or_from_a_folder(tmp_path):
    (tmp_path / "a_eval_results.json").write_text(json.dumps({"color": [0.5, []], "human action": [0.25, []]}))
    (tmp_path / "b_eval_results.json").write_text(json.dumps({"scene": [0.1, [], []]}))
    scores = read_scores([tmp_path])
    assert {name: score.raw for name, score in scores.items()} == {"color": 0.5, "human_action": 0.25, "scene": 0.1}
    with pytest.raises(InputError, match="color was in another file"):
        read_scores([tmp_path, tmp_path / "a_eval_results.json"])
    (tmp_path / "c.json").write_text(json.dumps(["color"]))
    with pytest.raises(InputError, match="no results file"):
        read_scores([tmp_path / "c.json"])
