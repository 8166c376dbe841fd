"""What the measured rates of loaders mean for a training step, here and on a faster machine."""

from bench.loading import judgement


def test_a_loader_is_judged_by_what_a_step_uses_up():
    films, cache = judgement({"films": 4.0, "latent cache": 300.0, "training step": 2.0}, workers=0, faster=100)
    assert "2.0 times what a step uses up, too little (asked: 3)" in films
    assert "enough for a step up to 0.7 times as fast; one 100 times as fast takes 150 loading processes" in films
    assert "150.0 times what a step uses up, enough" in cache
    # 300 clips a second keep a step of 100 busy threefold; 100 times this step takes 600 of them.
    assert "up to 50.0 times as fast; one 100 times as fast takes 2 loading processes" in cache


def test_rates_are_those_of_all_workers_together():
    (cache,) = judgement({"latent cache": 1200.0, "training step": 2.0}, workers=4, faster=100)
    assert "600.0 times" in cache
    assert "takes 2 loading processes" in cache
    (one,) = judgement({"in memory": 1e6, "training step": 2.0}, workers=0, faster=100)
    assert one.endswith("takes 1 loading process")
