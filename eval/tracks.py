"""What was found in the frames of a clip, linked over time into tracks, and the tracks as networks take them."""

from dataclasses import dataclass

import numpy as np

from vidgen.tabletop.scene import SHAPES

from .networks import MAX_BODIES, PICTURE, TRACK_FEATURES

SURE = 0.6
"""What the detector is never this certain of is no body."""
Finding = tuple[np.ndarray, float, dict[str, np.ndarray]]
"""A body in one picture: (x, y) in pixels, the detector's certainty, and what ``Track.readings`` holds."""


@dataclass
class Track:
    """One body over the frames in which it was found. F frames, in order."""

    frames: list[int]
    places: list[np.ndarray]
    """(x, y) in pixels of a picture of 128×128."""
    scores: list[float]
    readings: list[dict[str, np.ndarray]]
    """Of each frame: log-probabilities for each of ``LOOKS``, ``extent`` in pixels, ``upright`` from 0 to 1."""

    def expected(self, frame: int) -> np.ndarray:
        """Where it should be by its last two places; it is taken to stand still after a longer absence."""
        gap = frame - self.frames[-1]
        if len(self.frames) < 2 or gap > 3 or self.frames[-1] - self.frames[-2] > 2:
            return self.places[-1]
        velocity = (self.places[-1] - self.places[-2]) / (self.frames[-1] - self.frames[-2])
        return self.places[-1] + velocity * gap

    def absorb(self, other: "Track") -> None:
        """Take in the frames of another track of the same body in which this one lacks it."""
        mine = set(self.frames)
        rows = list(zip(self.frames, self.places, self.scores, self.readings, strict=True))
        more = zip(other.frames, other.places, other.scores, other.readings, strict=True)
        rows = sorted(rows + [row for row in more if row[0] not in mine], key=lambda row: row[0])
        self.frames, self.places, self.scores, self.readings = (list(column) for column in zip(*rows, strict=True))

    def likelihoods(self, name: str) -> np.ndarray:
        """Probabilities over ``LOOKS[name]``: the mean of the log-probabilities, by the detector's certainty."""
        mean = np.average([reading[name] for reading in self.readings], axis=0, weights=self.scores)
        odds = np.exp(mean - mean.max())
        return odds / odds.sum()


def track_features(
    frames: list[int], places: np.ndarray, extents: np.ndarray, shapes: np.ndarray, upright: np.ndarray, num_frames: int
) -> np.ndarray:
    """(TRACK_FEATURES, T) from what was found at frames (F,): places (F, 2), extents (F,), shapes (F, 3), upright (F,).

    Presence, place, step to the next frame and from the last, extent and posture; what was not found is interpolated.
    """
    time = np.arange(num_frames)
    values = np.concatenate([places / (PICTURE / 2) - 1, np.log(extents / 16)[:, None], upright[:, None], shapes], 1)
    filled = np.stack([np.interp(time, frames, column) for column in values.T])
    presence = np.zeros(num_frames)
    presence[frames] = 1.0
    steps = np.diff(filled[:2], axis=1, prepend=filled[:2, :1]) * 10
    return np.concatenate([presence[None], filled[:2], steps, filled[2:]]).astype(np.float32)


def link(found: list[list[Finding]]) -> list[Track]:
    """Tracks through the findings of each frame, by nearness and likeness of colour.

    No more than ``MAX_BODIES + 1`` are kept, the best established first; what shows up in few frames is left out.
    """
    tracks: list[Track] = []
    for frame, findings in enumerate(found):
        costs = []
        for i, track in enumerate(tracks):
            usual = track.likelihoods("colour")
            reach = 8 + 3 * min(frame - track.frames[-1], 8)
            for j, (place, _, reading) in enumerate(findings):
                apart = min(float(np.linalg.norm(place - track.expected(frame))) / reach, 2.5)
                unlike = 1 - float(np.sqrt(usual * np.exp(reading["colour"])).sum())
                costs.append((apart + 4 * unlike, i, j))
        taken_tracks: set[int] = set()
        taken: set[int] = set()
        for cost, i, j in sorted(costs):
            if cost < 3 and i not in taken_tracks and j not in taken:
                taken_tracks.add(i)
                taken.add(j)
                _extend(tracks[i], frame, findings[j])
        for j, finding in enumerate(findings):
            if j not in taken:
                tracks.append(Track([], [], [], []))
                _extend(tracks[-1], frame, finding)
    enough = max(2, 0.08 * len(found)) if len(found) > 1 else 1
    whole: list[Track] = []
    for track in sorted(tracks, key=lambda track: -sum(track.scores)):
        likely = [other for other in whole if _is_piece_of(track, other)]
        if likely:
            likely[0].absorb(track)
        else:
            whole.append(track)
    kept = [t for t in whole if len(t.frames) >= enough and sum(t.scores) >= 0.5 * enough and max(t.scores) >= SURE]
    return sorted(kept, key=lambda track: -sum(track.scores))[: MAX_BODIES + 1]


def _is_piece_of(track: Track, other: Track) -> bool:
    """Whether both are of one colour and hardly ever seen at once: one body, lost and found again."""
    if track.likelihoods("colour").argmax() != other.likelihoods("colour").argmax():
        return False
    return len(set(track.frames) & set(other.frames)) <= 0.3 * min(len(track.frames), len(other.frames))


def distinct(findings: list[Finding]) -> list[Finding]:
    """The findings of one picture without those that mean the same body as a more certain one.

    Two bodies may look as near to each other as their half size, where one is behind the other; two of one colour are
    taken for one body as far as they would touch.
    """
    kept: list[Finding] = []
    for place, score, reading in sorted(findings, key=lambda finding: -finding[1]):
        for other, _, known in kept:
            alike = reading["colour"].argmax() == known["colour"].argmax()
            if np.linalg.norm(place - other) < (1.5 if alike else 0.8) * float(known["extent"][0]):
                break
        else:
            kept.append((place, score, reading))
    return kept


def _extend(track: Track, frame: int, finding: Finding) -> None:
    track.frames.append(frame)
    track.places.append(finding[0])
    track.scores.append(finding[1])
    track.readings.append(finding[2])


def track_rows(tracks: list[Track], num_frames: int) -> np.ndarray:
    """(MAX_BODIES, TRACK_FEATURES, T) of the first tracks, zero where there is none; see ``track_features``."""
    rows = np.zeros((MAX_BODIES, TRACK_FEATURES, num_frames), np.float32)
    for row, track in zip(rows, tracks, strict=False):
        readings = track.readings
        row[:] = track_features(
            track.frames,
            np.stack(track.places),
            np.concatenate([reading["extent"] for reading in readings]),
            np.broadcast_to(track.likelihoods("shape"), (len(readings), len(SHAPES))),
            np.concatenate([reading["upright"] for reading in readings]),
            num_frames,
        )
    return rows
