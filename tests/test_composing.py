"""The judge judged, pieces of any length, and the command from end to end."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vae_notes.composing import (RECIPE, compose, glide, music_gates, nearest_windows, note_lengths, piece_statistics,
                                 prepare, pulse, repetition, scale_degrees, statistic_distance, tidy, to_common_key,
                                 together, total_variation, train_composer, vae_notes_compose)
from vae_notes.core import generator
from vae_notes.files import load, save
from vae_notes.midi import PIANO, Note, PianoRoll, best_keys, load_tunes, read_notes, to_roll, write_midi
from vae_notes.vrae import VRAE, keep_expected

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**40)


@pytest.fixture(scope="module")
def songs():
    rolls, skipped = prepare()
    assert not skipped
    return rolls


@pytest.fixture(scope="module")
def net(songs):
    torch.manual_seed(0)
    return VRAE(n_keys=len(songs[0].keys), **RECIPE | dict(hidden=16, latent=4))


def random_roll(seed, frames=120, rate=.05, keys=PIANO):
    return PianoRoll(torch.rand(frames, len(keys), generator=generator(seed)) < rate, keys=tuple(keys))


@few
@given(seeds)
def test_statistics_are_finite_and_in_range(seed):
    s = piece_statistics(random_roll(seed))
    for name in ("silence", "change", "repetition"): assert 0 <= s[name] <= 1
    assert -1 <= s["clarity"] <= 1 and s["pulse"] <= 1
    assert s["scale"].sum() == pytest.approx(1) and s["lengths"].sum() == pytest.approx(1)


@pytest.mark.parametrize("down", [torch.zeros(100, 88, dtype=torch.bool), torch.ones(100, 88, dtype=torch.bool)])
def test_the_empty_and_the_full_roll_have_statistics(down):
    s = piece_statistics(PianoRoll(down))
    assert all(np.isfinite(v).all() for v in s.values())


@few
@given(seeds, st.integers(1, 11))
def test_statistics_do_not_depend_on_the_key(seed, up):
    roll = random_roll(seed, keys=range(30, 80))
    moved = PianoRoll(roll.roll, keys=tuple(k + up for k in roll.keys))
    a, b = piece_statistics(roll), piece_statistics(moved)
    for name in a: np.testing.assert_allclose(a[name], b[name], atol=1e-9)


def test_statistics_by_hand():
    roll = to_roll([Note(i / 2, i / 2 + .25, 60) for i in range(8)] + [Note(0, 4, 48)], keys=(48, 60))
    s = piece_statistics(roll)
    assert s["density"] == pytest.approx(9 / 4) and s["silence"] == 0 and s["length"] == pytest.approx(.25)
    assert s["polyphony"] == pytest.approx(1.5) and s["change"] == pytest.approx(15 / 79)
    assert s["lengths"].tolist() == [0, 0, 8 / 9, 0, 0, 0, 1 / 9, 0] and s["scale"].tolist() == [1, *[0] * 11]
    assert repetition(roll) == 1 and pulse(roll) > .7
    gone = PianoRoll(torch.cat([roll.roll, torch.zeros_like(roll.roll)]), keys=roll.keys)
    assert piece_statistics(gone)["silence"] == .5 and piece_statistics(gone)["polyphony"] == pytest.approx(1.5)


@few
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_total_variation_is_a_distance(a, b):
    h, g = (np.array(x) + 1e-3 for x in (a, b))
    h, g = h / h.sum(), g / g.sum()
    assert 0 <= total_variation(h, g) <= 1 and total_variation(h, g) == pytest.approx(total_variation(g, h))
    assert total_variation(h, h) == 0 and total_variation(h * 0, g * 0) == 0 and total_variation(h, g * 0) == 1


def test_distances_are_in_factors_for_rates_and_in_points_for_shares():
    assert statistic_distance("density", 2., 8.) == 2 == statistic_distance("density", 8., 2.)
    assert statistic_distance("silence", .25, .75) == .5
    assert statistic_distance("density", 0., 5.) < 9  # silence is far, but not infinitely


def test_gates_of_songs_against_themselves_and_order(songs):
    gates = music_gates(songs, songs)
    assert gates.passed and np.allclose([*gates.ratios.values()], 7 / 8)
    mixed = music_gates(songs[::-1], songs[::-1]).ratios
    assert all(mixed[n] == pytest.approx(r) for n, r in gates.ratios.items())
    assert "ok" in repr(gates) and not music_gates(songs, songs, limit=.5).passed


def test_impostors_are_caught(songs):
    keys = songs[0].keys
    chord = torch.zeros(400, len(keys), dtype=torch.bool)
    chord[:, [5, 9, 12]] = True
    for down, name in [(torch.zeros_like(chord), "silence"), (chord, "change"), (random_roll(0, 400, .05, keys).roll, "pulse"),
                       (songs[0].roll[torch.randperm(400, generator=generator(0))], "length")]:
        gates = music_gates([PianoRoll(down, keys=keys)], songs)
        assert name in gates.failed and len(gates.failed) >= 4
    nan = type(music_gates(songs, songs))({"x": float("nan")}, 1.5)
    assert nan.failed == ["x"]  # what is no number does not pass


def test_common_key():
    for tune in load_tunes():
        for up in (-7, 0, 5):
            moved = to_roll([n._replace(pitch=n.pitch + up) for n in tune.notes()])
            home = to_common_key(moved)
            assert next(iter(home.key_scores())) in ("C major", "A minor")
            a, b = moved.notes()[0], home.notes()[0]
            assert abs(a.pitch - b.pitch) <= 6 and a.start == b.start
    silent = PianoRoll(torch.zeros(100, 88, dtype=torch.bool))
    assert to_common_key(silent) is silent


@few
@given(seeds, st.integers(1, 60), st.integers(1, 20))
def test_as_many_keys_as_expected_and_the_likeliest(seed, frames, keys):
    p = torch.rand(frames, keys, generator=generator(seed))
    down = keep_expected(p)
    assert torch.equal(down.sum(1), p.sum(1).round().long())
    for row, kept in zip(p, down):
        if kept.any() and not kept.all(): assert row[kept].min() >= row[~kept].max()


@few
@given(seeds, st.integers(1, 5))
def test_tidy_leaves_no_crumbs_and_adds_nothing(seed, shortest):
    p = torch.rand(50, 6, generator=generator(seed))
    kept, all_of_it = tidy(p, shortest, 0.), keep_expected(p)
    assert (kept <= all_of_it).all()
    runs = [n for n in PianoRoll(all_of_it, keys=tuple(range(6))).notes()]
    wanted = [n for n in runs if round((n.end - n.start) * 20) >= shortest]
    assert PianoRoll(kept, keys=tuple(range(6))).notes() == wanted


def test_a_path_has_the_length_asked_for_and_is_the_seeds_own():
    codes = [torch.randn(9, 3, generator=generator(i)) for i in range(3)]
    for n in (1, 11, 12, 13, 60):
        assert glide(codes, n).shape == (n, 3)
    assert torch.equal(glide(codes, 30, seed=1), glide(codes, 30, seed=1))
    assert not torch.equal(glide(codes, 30, seed=1), glide(codes, 30, seed=2))
    assert torch.equal(glide(codes, 60)[:20], glide(codes, 60)[:20])
    one = glide(codes[:1], 24, novelty=0.)  # a single song glides into itself
    assert one.shape == (24, 3)
    for bad in (dict(n=0), dict(n=5, stay=0), dict(n=5, novelty=-.1), dict(n=5, novelty=float("nan"))):
        with pytest.raises(ValueError): glide(codes, **bad)


@pytest.mark.parametrize("seconds", [.05, 1, 2, 7.3, 50])
def test_pieces_of_any_length_repeat_with_their_seed(net, songs, seconds):
    piece = compose(net, songs, seconds, seed=3)
    assert len(piece) == max(round(seconds * 20), 1) and piece.keys == songs[0].keys
    assert torch.equal(piece.roll, compose(net, songs, seconds, seed=3).roll)
    if seconds > 2: assert not torch.equal(piece.roll, compose(net, songs, seconds, seed=4).roll)


def test_an_hour_is_composed_quickly_and_nonsense_is_refused(net, songs):
    start = time.process_time()
    assert len(compose(net, songs, 600)) == 12_000
    assert time.process_time() - start < 30
    for bad in (0, -1, 3601, float("nan")):
        with pytest.raises(ValueError, match="seconds"): compose(net, songs, bad)


def test_training_names_what_it_cannot_use(songs):
    with pytest.raises(ValueError, match="rolls: expected at least one"): train_composer([])
    with pytest.raises(ValueError, match="made_up: expected ≥ 0"): train_composer(songs[:1], made_up=-1)


def test_training_is_the_seeds_own_and_leaves_the_global_generator_alone(songs, tmp_path):
    state = torch.random.get_rng_state()
    a, b = (train_composer(songs[:2], epochs=1, stride=60, made_up=200, seed=5, progress=False) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    save(a, tmp_path / "x.safetensors")
    back = load(tmp_path / "x.safetensors")
    assert torch.equal(compose(back, songs, 5).roll, compose(a, songs, 5).roll)


@few
@given(seeds, st.integers(0, 3))
def test_together_keeps_every_note_but_those_that_meet_on_a_key(seed, reach):
    roll = random_roll(seed, 60, .05)
    made = together(roll, reach)
    assert made.roll.shape == roll.roll.shape and made.keys == roll.keys and len(made.notes()) <= len(roll.notes())
    if not reach: assert torch.equal(made.roll, roll.roll)
    where = {(n.pitch, round(n.start * 20)) for n in roll.notes()}
    assert all(any((n.pitch, round(n.start * 20) + d) in where for d in range(-reach, reach + 1)) for n in made.notes())


def test_together_of_silence_is_silence():
    none = PianoRoll(torch.zeros(99, 88, dtype=torch.bool))
    assert torch.equal(together(none).roll, none.roll)


def test_the_nearest_window_is_itself_where_it_is_there():
    x = torch.rand(20, 8, 5, generator=generator(0)) < .3
    assert torch.equal(nearest_windows(x, x.flip(0)), x)


def test_the_command_composes_skips_and_explains(tmp_path, capsys):
    (tmp_path / "songs").mkdir()
    for i in (0, 3): write_midi(tmp_path / "songs" / f"{i}.mid", load_tunes()[i])
    (tmp_path / "songs" / "bad.mid").write_bytes(b"no music")
    out, model = str(tmp_path / "new.mid"), str(tmp_path / "m.safetensors")
    vae_notes_compose(str(tmp_path / "songs"), out=out, seconds=6., epochs=1, made_up=300, model=model, wav=str(tmp_path / "new.wav"))
    said = capsys.readouterr().out
    assert "skipped" in said and "bad.mid" in said and "2 songs" in said
    assert (tmp_path / "new.wav").read_bytes()[:4] == b"RIFF"
    first = (tmp_path / "new.mid").read_bytes()
    vae_notes_compose(str(tmp_path / "songs"), out=out, seconds=6., model=model)
    assert "using the model" in capsys.readouterr().out and (tmp_path / "new.mid").read_bytes() == first
    for bad, why in [(dict(folder=str(tmp_path / "none")), "is none"), (dict(resume=True), "needs --model"),
                     (dict(folder=str(tmp_path / "songs"), out=str(tmp_path / "songs" / "x.mid")), "learn from it"),
                     (dict(folder=str(tmp_path / "songs"), model=model, keys=30), "other keys"), (dict(seconds=-1.), "seconds"), (dict(novelty=-1.), "novelty"),
                     (dict(fps=0.), "fps"), (dict(keys=0), "n: expected")]:
        with pytest.raises(SystemExit, match=why): vae_notes_compose(**{"out": out, **bad})
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no readable MIDI file"): vae_notes_compose(str(tmp_path / "empty"), out=out)


def test_the_commands_help_teaches(tmp_path):
    script = tmp_path / "vae_notes_compose"  # as pip writes it
    script.write_text("import sys\nfrom vae_notes.composing import vae_notes_compose\nsys.exit(vae_notes_compose())\n")
    run = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.returncode == 0
    for word in ("folder", "--out", "--wav", "--seconds", "--seed", "--novelty", "--model", "--resume", "For example"):
        assert word in run.stdout, word
    wrong = subprocess.run([sys.executable, script, "nowhere"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert wrong.returncode == 1 and "'nowhere' is none" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_window_does_not_find_itself_in_the_next_that_overlaps_it():
    steps = torch.eye(10).bool().repeat_interleave(20, 0)  # every second another key
    assert repetition(PianoRoll(steps, keys=tuple(range(60, 70)))) == 0
