"""What does a setting of generation cost the last stage for each token?

    pytest benches/bench_settings.py                        # with timings
    pytest benches/bench_settings.py --benchmark-disable    # answers only

One row, 512 tokens so far. "greedy" is what a token costs without any setting: no scores are made of the logits.
"""

from __future__ import annotations

import pytest
import torch

from orbitsplit._models.generation_settings import generation_settings
from orbitsplit._models.logits_processors import needs_ids, pack_processor
from orbitsplit.runtime._messages.groups import Details, Group, Sampling
from orbitsplit.runtime._worker.sampling import picker_of

PROMPT = torch.randint(0, 30_000, (1, 512), generator=torch.Generator().manual_seed(1))
SETTINGS = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 50},
    "min_p": {"do_sample": True, "top_k": 0, "min_p": 0.05},
    "repetition_penalty": {"repetition_penalty": 1.2},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "sequence_bias": {"sequence_bias": [[[7], 1.0], [[8], -1.0]]},
    "logprobs": {},
}


@pytest.mark.parametrize("vocabulary", [32_000, 151_936])
@pytest.mark.parametrize("name", SETTINGS)
def test_token(benchmark, name, vocabulary):
    torch.set_num_threads(1)
    logits = 3 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(2))
    settings = generation_settings(
        {}, None, {"max_new_tokens": 99, **SETTINGS[name]}, input_ids=PROMPT, vocabulary=vocabulary
    )
    processors = settings.processors(PROMPT, None)
    group = Group(
        id=0,
        rows=1,
        tokens=PROMPT.shape[1],
        mask=None,
        max_new_tokens=99,
        sampling=Sampling(3) if settings.config.do_sample else None,
        processors=tuple(map(pack_processor, processors)),
        needs_ids=needs_ids(processors),
        details=Details(logprobs=5) if name == "logprobs" else None,
    ).with_ids(PROMPT)
    picker = picker_of(group)
    benchmark.group = f"a token of {vocabulary:,}"
    token = int(benchmark(picker.pick, logits, 0).flatten()[0])
    scores = logits
    for processor in processors:
        scores = processor(PROMPT, scores)
    if settings.config.do_sample:
        assert scores[0, token] > float("-inf")
    else:
        assert token == int(scores.argmax())
