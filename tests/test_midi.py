"""Rolls and MIDI files as properties; damaged files by the thousand; every tune bar by bar."""

import io
import math
import random
import struct
import time
import wave

import mido
import numpy as np
import pretty_midi
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vae_notes.files import FileFormatError
from vae_notes.midi import (PIANO, TUNES, Note, PianoRoll, Sound, Tune, best_keys, frequency, load_tunes, pair_events, pitch,
                            pitch_name, pluck, read_folder, read_midi, read_notes, read_part, render, roll_windows, split_by_song,
                            synthesize, tick_seconds, to_roll, write_midi)

few = settings(max_examples=40, deadline=None, derandomize=True)
times = st.floats(0, 30, allow_nan=False)
notes = st.lists(st.tuples(times, st.floats(.01, 5), st.integers(21, 108)), min_size=1, max_size=30).map(
    lambda rows: sorted(Note(a, a + d, p) for a, d, p in rows))


def apart(rows):
    """Notes on a grid of frames, never two at once on one key: (key, gaps and lengths)."""
    out = []
    for key, spans in rows.items():
        now = 0
        for gap, length in spans:
            out.append(Note((now + gap) / 20, (now + gap + length) / 20, key))
            now += gap + length
    return sorted(out)


grid = st.dictionaries(st.integers(21, 108), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6),
                       min_size=1, max_size=6).map(apart)


@few
@given(grid)
def test_with_onsets_nothing_is_lost(rows):
    assert to_roll(rows, onsets=True).notes() == rows


@few
@given(grid)
def test_without_onsets_no_end_moves_by_more_than_a_frame(rows):
    rows = [n for n in rows if n.end - n.start > 1.5 / 20]  # a repeated note of one frame can't be told apart
    if not rows: return
    rows, back = (sorted(x, key=lambda n: (n.start, n.pitch)) for x in (rows, to_roll(rows).notes()))
    assert [(n.start, n.pitch) for n in back] == [(n.start, n.pitch) for n in rows]
    assert all(0 <= a.end - b.end < 1.01 / 20 for a, b in zip(rows, back))


@few
@given(notes, st.sampled_from([5, 12.5, 20, 100]))
def test_a_roll_holds_every_note_to_within_half_a_frame(rows, fps):
    roll = to_roll(rows, fps, onsets=True)
    for n in rows:
        a, b = round(n.start * fps, 6), round(n.end * fps, 6)
        held = roll.roll[math.ceil(a + .5):math.floor(b - .5), roll.keys.index(n.pitch)]
        assert held.all()
        assert roll.onsets[math.floor(a + .5), roll.keys.index(n.pitch)]
    assert len(roll) <= max(n.end for n in rows) * fps + 1.5


@few
@given(notes)
def test_a_roll_read_back_and_made_again_is_the_same(rows):
    for onsets in (False, True):
        roll = to_roll(rows, onsets=onsets)
        again = to_roll(roll.notes(), onsets=onsets)
        assert torch.equal(again.roll, roll.roll[:len(again)]) and not roll.roll[len(again):].any()


@few
@given(notes)
def test_order_of_notes_does_not_matter(rows):
    mixed = rows[:]
    random.Random(0).shuffle(mixed)
    assert torch.equal(to_roll(mixed).roll, to_roll(rows).roll)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(grid)
def test_a_file_keeps_every_note(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("midi") / "x.mid"
    write_midi(path, rows)
    back = read_notes(path)
    close = [sorted(x, key=lambda n: (round(n.start * 20), n.pitch)) for x in (back, rows)]
    assert [n.pitch for n in close[0]] == [n.pitch for n in close[1]]
    assert np.abs(np.array(close[0])[:, :2] - np.array(close[1])[:, :2]).max() < .001
    assert torch.equal(read_midi(path).roll, to_roll(rows).roll)


def file_of(*tracks, kind=1, per_beat=96):
    """A MIDI file of mido messages with absolute ticks."""
    out = mido.MidiFile(type=kind, ticks_per_beat=per_beat)
    for messages in tracks:
        now, track = 0, mido.MidiTrack()
        for tick, message in sorted(messages, key=lambda m: m[0]):
            track.append(message.copy(time=tick - now))
            now = tick
        out.tracks.append(track)
    out.save(file=(buffer := io.BytesIO()))
    return buffer.getvalue()


def on(p, channel=0, velocity=64): return mido.Message("note_on", note=p, velocity=velocity, channel=channel)
def off(p, channel=0): return mido.Message("note_off", note=p, channel=channel)
def pedal(v, channel=0): return mido.Message("control_change", control=64, value=v, channel=channel)
def tempo(us): return mido.MetaMessage("set_tempo", tempo=us)


def read(tmp_path, data, **kwargs):
    (tmp_path / "x.mid").write_bytes(data)
    return read_notes(tmp_path / "x.mid", **kwargs)


events = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 400), st.integers(30, 90), st.integers(1, 127)), min_size=1, max_size=25)
tempos = st.lists(st.tuples(st.integers(0, 2500), st.integers(100_000, 2_000_000)), max_size=6, unique_by=lambda t: t[0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(events, tempos, st.sampled_from([24, 96, 480]))
def test_notes_and_times_are_those_of_pretty_midi(tmp_path_factory, rows, changes, per_beat):
    path = tmp_path_factory.mktemp("midi") / "x.mid"
    busy, messages = {}, []
    for start, length, key, velocity in sorted(rows):
        if start <= busy.get(key, 0): continue  # overlaps are for another test
        busy[key] = start + length
        messages += [(start, on(key, velocity=velocity)), (start + length, off(key))]
    path.write_bytes(file_of([(t, tempo(us)) for t, us in changes], messages, per_beat=per_beat))
    theirs = sorted(Note(n.start, n.end, n.pitch, n.velocity) for i in pretty_midi.PrettyMIDI(str(path)).instruments for n in i.notes)
    ours = read_notes(path)
    assert [n[2:] for n in ours] == [n[2:] for n in theirs]
    np.testing.assert_allclose([n[:2] for n in ours], [n[:2] for n in theirs], atol=1e-9)


@few
@given(tempos, st.lists(st.integers(0, 3000), min_size=1, max_size=9))
def test_time_never_runs_backwards_and_adds_up(changes, ticks):
    changes, ticks = sorted(changes), sorted(ticks)
    seconds = tick_seconds(ticks, changes, 96)
    assert (np.diff(seconds) >= 0).all()
    speed = np.full(3001, 500_000.)
    for tick, us in changes: speed[tick:] = us
    np.testing.assert_allclose(seconds, np.concatenate([[0], np.cumsum(speed)])[ticks] / 96e6)


def test_pedal_holds_until_it_comes_up_and_only_on_its_channel(tmp_path):
    data = file_of([(0, pedal(127)), (0, on(60)), (0, on(50, 1)), (48, off(60)), (48, off(50, 1)), (192, pedal(0))])
    assert read(tmp_path, data) == [Note(0, .25, 50, 64), Note(0, 1., 60, 64)]


def test_each_channel_has_its_own_pedal(tmp_path):
    data = file_of([(0, pedal(127)), (0, pedal(127, 1)), (0, on(60)), (0, on(50, 1)), (48, off(60)), (48, off(50, 1)),
                    (96, pedal(0)), (192, pedal(0, 1))])
    assert read(tmp_path, data) == [Note(0, .5, 60, 64), Note(0, 1., 50, 64)]


def test_pedal_on_one_track_holds_keys_of_another(tmp_path):
    data = file_of([(0, pedal(64)), (192, pedal(63))], [(0, on(60)), (48, off(60))])
    assert read(tmp_path, data)[0].end == 1


def test_a_key_struck_again_ends_the_first_note(tmp_path):
    assert read(tmp_path, file_of([(0, on(60)), (96, on(60)), (192, off(60))])) == [Note(0, .5, 60, 64), Note(.5, 1, 60, 64)]
    held = file_of([(0, pedal(127)), (0, on(60)), (10, off(60)), (96, on(60)), (100, off(60)), (192, pedal(0))])
    assert [(n.start, n.end) for n in read(tmp_path, held)] == [(0, .5), (.5, 1)]


def test_two_hands_on_one_key_keep_their_own_ends(tmp_path):
    data = file_of([(0, on(60)), (192, off(60))], [(96, on(60)), (384, off(60))])
    assert [(n.start, n.end) for n in read(tmp_path, data)] == [(0, 1), (.5, 2)]
    roll = read_midi(tmp_path / "x.mid", keys=(60,))
    assert roll.roll[:, 0].tolist() == [True] * 9 + [False] + [True] * 30  # lifted before the second
    assert [n.start for n in read_midi(tmp_path / "x.mid", keys=(60,), onsets=True).notes()] == [0, .5]


def test_what_nobody_lets_go_ends_with_the_file(tmp_path):
    assert read(tmp_path, file_of([(0, on(60)), (0, on(62)), (192, off(62))]))[0] == Note(0, 1, 60, 64)


def test_a_note_of_no_length_keeps_one_frame(tmp_path):
    assert read(tmp_path, file_of([(96, on(60)), (96, off(60)), (200, off(60))])) == [Note(.5, .5, 60, 64)]
    assert read_midi(tmp_path / "x.mid").roll.sum() == 1


def test_velocity_zero_is_a_release_and_drums_are_dropped(tmp_path):
    data = file_of([(0, on(60)), (0, on(36, 9)), (96, on(60, velocity=0)), (99, off(36, 9))])
    assert read(tmp_path, data) == [Note(0, .5, 60, 64)]


def test_tempo_on_any_track_counts(tmp_path):
    assert read(tmp_path, file_of([(0, on(60)), (96, off(60))], [(0, tempo(250_000))]))[0].end == .25


def test_ticks_as_on_film(tmp_path):
    data = bytearray(file_of([(0, on(60)), (50, off(60)), (50, tempo(9))]))
    data[12:14] = bytes([256 - 25, 4])  # 25 frames of 4 ticks: 100 ticks a second, whatever the tempo
    assert read(tmp_path, bytes(data)) == [Note(0, .5, 60, 64)]


def test_names_lyrics_and_odd_chunks_are_stepped_over(tmp_path):
    data = file_of([(0, mido.MetaMessage("track_name", name="x")), (0, on(60)), (5, mido.Message("sysex", data=(1, 2, 3))),
                    (7, mido.Message("program_change", program=3)), (8, mido.Message("aftertouch", value=5)), (9, mido.Message("pitchwheel", pitch=99)), (96, off(60))])
    odd = data[:14] + b"XFIH" + struct.pack(">I", 5) + b"hello" + data[14:]
    assert read(tmp_path, odd) == [Note(0, .5, 60, 64)]


bad_files = {
    "empty": (b"", "begin with MThd"), "header only": (b"MThd", "cut short"), "no track": (b"MThd" + struct.pack(">IHHH", 6, 1, 0, 96), "no track"),
    "format 2": (file_of([(0, on(60)), (9, off(60))], kind=2), "format 2"), "silent": (file_of([(0, tempo(9))]), "no note"),
    "drums": (file_of([(0, on(40, 9)), (9, off(40, 9))]), "drums aside"), "cut": (file_of([(0, on(60)), (9, off(60))])[:-3], "cut short"),
    "no ticks": (bytes(b if i not in (12, 13) else 0 for i, b in enumerate(file_of([(0, on(60)), (9, off(60))]))), "no track"),
    "no tempo": (file_of([(0, tempo(0)), (0, on(60)), (9, off(60))]), "tempo of zero"), "long": (file_of([(0, on(60)), (96 * 9000, off(60))]), "lasts 4500"),
    "huge": (b"MThd" + bytes(2_000_001), "expected ≤ 2"),
}


@pytest.mark.parametrize("name", bad_files)
def test_a_bad_file_says_its_name_and_what_is_wrong(tmp_path, name):
    data, why = bad_files[name]
    with pytest.raises(FileFormatError, match=why) as error: read(tmp_path, data)
    assert "x.mid" in str(error.value)


def test_the_longest_claim_of_time_costs_nothing(tmp_path):
    body = b"\x00\x90\x3c\x40" + b"\xff\xff\xff\x7f\xb0\x01\x01" * 50_000 + b"\x00\x80\x3c\x00"
    data = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 1) + b"MTrk" + struct.pack(">I", len(body)) + body
    start = time.process_time()
    with pytest.raises(FileFormatError, match="lasts"): read(tmp_path, data)
    assert time.process_time() - start < 5


def test_a_folder_is_read_and_what_is_skipped_is_listed(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, (data, _) in bad_files.items(): (tmp_path / f"{name}.mid").write_bytes(data)
    (tmp_path / "sub" / "Good.MIDI").write_bytes(file_of([(0, on(60)), (96, off(60))]))
    (tmp_path / "notes.txt").write_text("not music")
    (tmp_path / "a folder.mid").mkdir()
    rolls, skipped = read_folder(tmp_path)
    assert [r.title for r in rolls] == ["Good"] and len(skipped) == len(bad_files) + 1
    assert all(path in why or "directory" in why.lower() for path, why in skipped.items())
    with pytest.raises(FileNotFoundError): read_folder(tmp_path / "none")


def test_damaged_files_give_typed_errors_only(tmp_path):
    rng, path = random.Random(0), tmp_path / "x.mid"
    write_midi(path, load_tunes()[0].notes()[:40])
    good, read_ones = path.read_bytes(), 0
    for _ in range(600):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 5, 30])):
            where, what = rng.randrange(len(data)), rng.randrange(4)
            if what == 0: data[where] = rng.randrange(256)
            elif what == 1: del data[where:where + rng.randrange(1, 20)]
            elif what == 2: data[where:where] = rng.randbytes(rng.randrange(1, 9))
            else: data[where] ^= 1 << rng.randrange(8)
            if not data: break
        path.write_bytes(data)
        try: roll = read_midi(path)
        except FileFormatError as error:
            assert "x.mid" in str(error)
            continue
        assert len(roll) <= 3600 * 20 + 1 and roll.roll.any()
        read_ones += 1
    assert 40 < read_ones < 560


def test_bad_arguments_are_named(tmp_path):
    one = [Note(0, 1, 60)]
    for call, kind, what in [
            (lambda: to_roll(one, fps=0), ValueError, "fps"), (lambda: to_roll(one, fps=float("nan")), ValueError, "fps"),
            (lambda: to_roll(one, keys=(60, 60)), ValueError, "keys"), (lambda: to_roll(one, keys=()), ValueError, "keys"),
            (lambda: to_roll(one, keys=(200,)), ValueError, "keys"), (lambda: to_roll([]), ValueError, "notes"),
            (lambda: PianoRoll(torch.zeros(3, 88)), TypeError, "roll"), (lambda: PianoRoll([[True]], keys=(60,)), TypeError, "roll"),
            (lambda: PianoRoll(torch.zeros(3, 8).bool()), ValueError, "roll"),
            (lambda: PianoRoll(torch.zeros(3, 88).bool(), onsets=torch.zeros(2, 88).bool()), ValueError, "onsets"),
            (lambda: best_keys([], 3), ValueError, "rolls"), (lambda: best_keys([to_roll(one)], 89), ValueError, "n: expected ≤ 88"),
            (lambda: best_keys([to_roll(one), to_roll(one, keys=(60,))], 1), ValueError, "same keys"),
            (lambda: roll_windows([to_roll(one)], 21), ValueError, "frames=21"), (lambda: roll_windows([to_roll(one)], 2.), TypeError, "frames"),
            (lambda: write_midi(tmp_path / "x.mid", one, program=128), ValueError, "program"), (lambda: render(one, bits=12), ValueError, "bits"),
            (lambda: synthesize(one, rate=10), ValueError, "rate"), (lambda: pitch("c4"), ValueError, "F#4"),
            (lambda: read_part("~ C4 ||", 3), ValueError, "bar 1"), (lambda: read_part("C4*0x |", 3), ValueError, "bar 1")]:
        with pytest.raises(kind, match=what): call()
    assert not (tmp_path / "x.mid").exists()


def test_windows_are_pieces_of_their_song_and_of_no_other():
    songs = load_tunes()
    x, song = roll_windows(songs, 40, 13)
    start = 0
    for i, s in enumerate(songs):
        n = (len(s) - 40) // 13 + 1
        assert (song[start:start + n] == i).all()
        for j in range(n): assert torch.equal(x[start + j], s.roll[13 * j:13 * j + 40])
        start += n
    assert start == len(x)
    short = to_roll([Note(0, 1, 60)])
    assert set(roll_windows([short, songs[0]], 40)[1].tolist()) == {1}


@pytest.mark.parametrize("seed", range(8))
def test_no_song_is_on_both_sides(seed):
    songs = load_tunes() + load_tunes()  # every title twice
    parts = split_by_song(songs, (.5, .25, .25), seed)
    titles = [{r.title for r in part} for part in parts]
    assert [len(t) for t in titles] == [4, 2, 2] and not (titles[0] & titles[1] or titles[1] & titles[2] or titles[0] & titles[2])
    assert sum(map(len, parts)) == 16


def test_best_keys_are_the_most_used():
    rolls = [to_roll([Note(0, 3, 60), Note(0, 2, 64), Note(0, 1, 90)])]
    assert best_keys(rolls, 1) == (60,) and best_keys(rolls, 3) == (60, 64, 90)
    assert best_keys(rolls, 5) == (60, 64, 66, 67, 90)  # then those near the middle of what is played
    assert best_keys(rolls, 88) == PIANO


@pytest.mark.parametrize("tune", TUNES, ids=lambda t: t.title)
def test_every_tune_is_whole(tune):
    voices = [read_part(tune.expand(part), tune.bar, tune.pickup) for part in tune.parts]
    bars = {tune.expand(part).count("|") for part in tune.parts}
    assert len(bars) == 1
    total = (bars.pop() - bool(tune.pickup)) * tune.bar + tune.pickup
    assert all(max(a + n for a, n, _ in voice) <= total for voice in voices)
    assert total * tune.unit >= 26 and all(28 <= n.pitch <= 90 for n in tune.notes())
    for voice in voices:  # one voice never plays over itself
        assert all(a[0] + a[1] <= b[0] for a, b in zip(voice, voice[1:]))
    scores = to_roll(tune.notes()).key_scores()
    root, mode = tune.key.split()
    near = {tune.key, f"{pitch_name(pitch(root + '4') + 7)[:-1]} {mode}", f"{pitch_name(pitch(root + '4') + 3)[:-1]} major"}
    assert next(iter(scores)) in near  # its key, the fifth above, or the major key beside


def test_first_notes_of_the_tunes():
    first = {t.title: [pitch_name(n[2][-1]) for n in read_part(t.expand(t.parts[0]), t.bar, t.pickup)[:8]] for t in TUNES}
    assert first["Korobeiniki"] == "E5 B4 C5 D5 C5 B4 A4 A4".split()
    assert first["In the Hall of the Mountain King"] == "B2 C#3 D3 E3 F#3 D3 F#3 F3".split()
    assert first["The Blue Danube"] == "D4 D4 F#4 A4 A4 A5 A5 F#5".split()
    assert first["Für Elise"] == "E5 D#5 E5 D#5 E5 B4 D5 C5".split()
    assert first["Moonlight Sonata"] == "G#4 G#4 G#4 G#4 G#4 G#4 A4 G#4".split()
    assert first["Toccata and Fugue in D minor"] == "A5 G5 A5 G5 F5 E5 D5 C#5".split()
    assert first["Dance of the Sugar Plum Fairy"] == "G5 E5 G5 F#5 D#5 E5 D5 D5".split()
    assert first["The Entertainer"] == "D6 E6 C6 A5 B5 G5 D5 E5".split()


@few
@given(st.integers(24, 96), st.floats(.2, 2))
def test_a_note_sounds_at_its_frequency(key, seconds):
    sound = synthesize([Note(0, seconds, key)], 8000)
    n = 1 << 16
    peak = np.abs(np.fft.rfft(sound, n)).argmax() * 8000 / n
    assert abs(peak / frequency(key) - 1) < .03
    assert abs(sound).max() == pytest.approx(.95)


def test_what_a_rate_cannot_hold_is_left_out_and_soft_notes_are_softer():
    assert not pluck(4200., .1, 8000).any()  # above half the rate it would come back as another pitch
    sound = synthesize([Note(0, .2, 60, 127), Note(1, 1.2, 60, 40)], 8000)
    assert np.abs(sound[8000:]).max() / np.abs(sound[:8000]).max() == pytest.approx(40 / 127, rel=.05)


def test_wav_files_have_the_length_and_format_asked_for(tmp_path):
    for bits in (8, 16):
        data = render([Note(0, 1, 60), Note(.5, 1.5, 64)], tmp_path / "x.wav", rate=8000, bits=bits)
        assert data == (tmp_path / "x.wav").read_bytes()
        with wave.open(str(tmp_path / "x.wav")) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, bits // 8, 8000)
            assert file.getnframes() == 1.6 * 8000
    assert set(render([])[44:]) == {128}  # silence
    with pytest.raises(ImportError, match="FluidSynth"): render([Note(0, 1, 60)], soundfont="none.sf2")


def test_sound_is_inside_the_page_and_escapes_its_title():
    sound = Sound(to_roll([Note(0, 2, 60)], title='<b>"x"'), seconds=1)
    assert sound.seconds == 1 and "1.0 s" in repr(sound)
    text = sound._repr_html_()
    assert "data:audio/wav;base64," in text and "<b>" not in text and "http" not in text


def test_a_pair_needs_both_and_the_story_may_stop_anywhere():
    assert pair_events([]) == []
    assert pair_events([(0, 0, 0x80, 60, 0)]) == []
    assert pair_events([(3, 0, 0x90, 60, 9)]) == [(3, 3, 60, 9)]
