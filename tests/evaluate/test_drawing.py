"""Which of several drawings is kept: the one that the model itself calls by the prompt."""

from __future__ import annotations

import numpy as np

from geminid.evaluate.drawing import CANDIDATES, best_drawings, peak_signal_to_noise

PROMPTS, STYLES = ["apple", "dog", "sun"], ["noto", "openmoji", "noto"]


class Painter:
    """Draws picture k in grey k; likes greys as `liking` says, by language and prompt."""

    def __init__(self, liking: np.ndarray):
        self.liking = liking  # [languages prompts candidates]
        self.asked: list[tuple[str | None, str]] = []

    def draw(self, prompts, unconditional, *, seed, temperature, guidance):
        for document, other in zip(prompts, unconditional, strict=True):
            draw, style, words = (segment.text for segment in document.segments)
            assert draw == "draw" and [segment.text for segment in other.segments] == ["draw", style]
            self.asked.append((words, style.removeprefix("style:")))
        return np.arange(len(prompts), dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)

    def names(self, texts):
        return texts

    def likelihoods(self, questions, candidates):
        rows = []
        for question, (text,) in zip(questions, candidates, strict=True):
            picture, tag = question.segments
            prompt, candidate = divmod(int(picture.pixels[0, 0, 0]), CANDIDATES)
            assert text == PROMPTS[prompt]
            rows.append([self.liking[["lang:en", "lang:fr"].index(tag.text), prompt, candidate]])
        return np.array(rows)


def test_the_drawing_is_kept_that_is_likeliest_called_by_its_prompt_in_any_language():
    liking = np.random.default_rng(0).standard_normal((2, len(PROMPTS), CANDIDATES))
    for languages in (("en",), ("en", "fr")):
        painter = Painter(liking)
        best, first = best_drawings(painter, PROMPTS, STYLES, languages, seed=0)  # type: ignore[arg-type]
        assert painter.asked == [pair for pair in zip(PROMPTS, STYLES, strict=True) for _ in range(CANDIDATES)]
        expected = [
            max(range(CANDIDATES), key=lambda c, p=p: max(liking[k, p, c] for k in range(len(languages))))
            for p in range(len(PROMPTS))
        ]
        assert best[:, 0, 0, 0].tolist() == [p * CANDIDATES + c for p, c in enumerate(expected)]
        assert first[:, 0, 0, 0].tolist() == [p * CANDIDATES for p in range(len(PROMPTS))]


def test_peak_signal_to_noise_is_that_of_the_definition():
    a = np.zeros((3, 2, 2, 3), np.uint8)
    b = a.copy()
    b[0], b[1, 0, 0, 0] = 255, 255  # all wrong: 0 dB; one of twelve values: 10 log10(12)
    np.testing.assert_allclose(peak_signal_to_noise(a, b)[:2], [0.0, 10 * np.log10(12)])
    assert np.isfinite(peak_signal_to_noise(a, b)[2])
