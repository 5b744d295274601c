"""transformer.py against torch's own modules, and properties that must hold."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medlm_utils import transformer

ATTENDS = [transformer.attention, transformer.fused_attention]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def some_masks(batch: int, queries: int, keys: int) -> dict[str, torch.Tensor | None]:
    """Every kind of mask, the one with a fully masked row last."""
    real = torch.arange(keys) < torch.randint(1, keys + 1, (batch, 1))
    random = torch.rand(batch, 1, queries, keys) < 0.5
    random[:, :, 0] = False
    masks = {"none": None, "padding": transformer.padding_mask(real), "random": random}
    if keys >= queries:
        causal = transformer.causal_mask(queries, keys)
        masks |= {"causal": causal, "both": causal & masks["padding"]}
    return masks


class TestAttention:
    @pytest.mark.parametrize(
        "mask_name", ["none", "padding", "random", "causal", "both"]
    )
    @pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 9)])
    def test_equals_sdpa(self, mask_name, queries, keys):
        for _ in range(5):
            q = torch.randn(2, 3, queries, 16)
            k, v = torch.randn(2, 2, 3, keys, 16)
            mask = some_masks(2, queries, keys)[mask_name]
            expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            for attend in ATTENDS:
                assert (attend(q, k, v, mask) - expected).abs().max() < 1e-5

    def test_rows_of_weights_sum_to_one_unless_all_is_hidden(self):
        q, k = torch.randn(2, 2, 3, 6, 16)
        weights = transformer.attention_weights(q, k, some_masks(2, 6, 6)["random"])
        sums = weights.sum(dim=-1)
        assert (sums[:, :, 0] == 0).all()
        torch.testing.assert_close(sums[:, :, 1:], torch.ones(2, 3, 5))

    def test_a_fully_masked_row_sends_no_nan_into_the_gradient(self):
        x = torch.randn(4, 8, requires_grad=True)
        mask = torch.ones(4, 4, dtype=torch.bool)
        mask[2] = False
        transformer.attention(x, x, x, mask).sum().backward()
        assert x.grad.isfinite().all()

    def test_hidden_keys_have_no_influence_however_large(self):
        q, k, v = torch.randn(3, 5, 8)
        mask = torch.tensor([True, True, False, True, False])
        before = transformer.attention(q, k, v, mask)
        k, v = k.clone(), v.clone()
        k[~mask], v[~mask] = 1e4, -1e4
        torch.testing.assert_close(transformer.attention(q, k, v, mask), before)

    def test_scores_have_variance_one_at_every_width(self):
        for d_head in (4, 64, 512):
            q, k = torch.randn(2, 400, d_head)
            weights = transformer.attention_weights(q, k)
            scores = weights.log() - weights.log().mean(dim=-1, keepdim=True)
            assert scores.var().item() == pytest.approx(1, rel=0.15)

    def test_a_hidden_key_has_no_weight_beside_very_low_scores(self):
        query, key = torch.full((1, 4), 300.0), torch.full((3, 4), -300.0)
        key[2] = 300.0  # the best key by far, but hidden
        mask = torch.tensor([True, True, False])
        weights = transformer.attention_weights(query, key, mask)
        assert weights.tolist() == [[0.5, 0.5, 0.0]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
    def test_a_mask_that_is_not_boolean_is_refused(self, dtype):
        x = torch.randn(3, 4)
        with pytest.raises(TypeError, match=r"expected torch\.bool"):
            transformer.attention(x, x, x, torch.ones(3, 3, dtype=dtype))


class TestMasks:
    def test_causal_jacobian_is_lower_triangular(self):
        block = transformer.EncoderBlock(8, 2, 16)
        mask = transformer.causal_mask(5)

        def run(x):
            return block(x[None], mask)[0]

        reaction = torch.autograd.functional.jacobian(run, torch.randn(5, 8))
        size = reaction.norm(dim=(1, 3))
        assert (size.triu(1) == 0).all()
        assert (size.tril() > 0).sum() == 15

    def test_causal_mask_written_out(self):
        three = [[True, False, False], [True, True, False], [True, True, True]]
        assert transformer.causal_mask(3).tolist() == three
        last_two = [[True, True, True, False], [True, True, True, True]]
        assert transformer.causal_mask(2, 4).tolist() == last_two
        assert transformer.causal_mask(2, device="meta").device.type == "meta"

    def test_causal_mask_is_that_of_sdpa(self):
        q, k, v = torch.randn(3, 2, 5, 8)
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        got = transformer.attention(q, k, v, transformer.causal_mask(5))
        torch.testing.assert_close(got, expected)

    def test_last_queries_of_a_cache_see_what_they_saw_without_it(self):
        whole = transformer.causal_mask(6)
        assert torch.equal(transformer.causal_mask(2, 6), whole[-2:])
        assert torch.equal(transformer.causal_mask(6, 6), whole)

    def test_fewer_keys_than_queries_is_refused(self):
        with pytest.raises(ValueError, match="3 queries but 2 keys"):
            transformer.causal_mask(3, 2)

    def test_padding_changes_nothing_for_real_tokens(self):
        block = transformer.EncoderBlock(8, 2, 16)
        short = torch.randn(1, 4, 8)
        padded = torch.cat([short, torch.randn(1, 3, 8)], dim=1)
        mask = transformer.padding_mask(torch.tensor([[1, 1, 1, 1, 0, 0, 0]]))
        torch.testing.assert_close(block(padded, mask)[:, :4], block(short))


class TestPositions:
    def test_first_rows_and_frequencies(self):
        table = transformer.sinusoidal_positions(3, 4)
        t = torch.arange(3.0)
        expected = torch.stack(
            [t.sin(), t.cos(), (t / 100).sin(), (t / 100).cos()], dim=1
        )
        torch.testing.assert_close(table, expected)

    def test_dot_product_depends_on_the_distance_only(self):
        table = transformer.sinusoidal_positions(40, 32)
        products = table @ table.T
        for distance in (0, 1, 7):
            diagonal = products.diagonal(distance)
            assert (diagonal - diagonal[0]).abs().max() < 1e-4

    def test_odd_width_is_refused(self):
        with pytest.raises(ValueError, match="even"):
            transformer.sinusoidal_positions(3, 5)

    def test_without_positions_attention_is_permutation_equivariant(self):
        module = transformer.MultiHeadAttention(8, 2)
        x, order = torch.randn(1, 6, 8), torch.randperm(6)
        torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


class TestModules:
    def test_layer_norm(self):
        ours, theirs = transformer.LayerNorm(16), nn.LayerNorm(16)
        gain, bias = torch.randn(2, 16)
        for norm, name in [(ours, "gain"), (theirs, "weight")]:
            getattr(norm, name).data, norm.bias.data = gain, bias
        x = 5 * torch.randn(3, 4, 16) + 2
        torch.testing.assert_close(ours(x), theirs(x))

    @pytest.mark.parametrize(("size", "eps"), [(1e-3, 1e-5), (1.0, 0.1), (1e-3, 1e-12)])
    def test_layer_norm_adds_eps_inside_the_root(self, size, eps):
        x = size * torch.randn(3, 16)
        ours, theirs = transformer.LayerNorm(16, eps), nn.LayerNorm(16, eps)
        torch.testing.assert_close(ours(x), theirs(x))

    def test_layer_norm_has_the_usual_eps(self):
        assert transformer.LayerNorm(4).eps == nn.LayerNorm(4).eps

    def test_layer_norm_of_a_constant_token_is_finite(self):
        assert transformer.LayerNorm(4)(torch.full((1, 4), 3.0)).isfinite().all()

    @pytest.mark.parametrize("attend", ATTENDS)
    def test_multi_head_attention_equals_torch(self, attend):
        ours = transformer.MultiHeadAttention(16, 4, attend)
        theirs = nn.MultiheadAttention(16, 4, batch_first=True)
        copy_attention(ours, theirs)
        x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
        mask = torch.rand(5, 7) < 0.7
        mask[:, 0] = True
        expected, weights = theirs(
            x, memory, memory, attn_mask=~mask, average_attn_weights=False
        )
        torch.testing.assert_close(ours(x, memory, mask), expected)
        torch.testing.assert_close(ours.weights(x, memory, mask), weights)

    def test_heads_must_divide_the_width(self):
        with pytest.raises(ValueError, match="10 cannot be shared by 4 heads"):
            transformer.MultiHeadAttention(10, 4)

    @pytest.mark.parametrize("pre_norm", [True, False])
    @pytest.mark.parametrize("training", [True, False])
    def test_encoder_block_equals_torch(self, pre_norm, training):
        ours = transformer.EncoderBlock(16, 4, 32, pre_norm, F.gelu)
        theirs = nn.TransformerEncoderLayer(
            16, 4, 32, 0.0, F.gelu, batch_first=True, norm_first=pre_norm
        )
        copy_attention(ours.attention, theirs.self_attn)
        copy_rest(ours, theirs, ["attention_norm", "feed_forward_norm"])
        ours.train(training)
        theirs.train(training)
        x = torch.randn(2, 5, 16)
        real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
        keep = real[:, :, None]
        got = ours(x, transformer.padding_mask(real))
        expected = theirs(x, src_key_padding_mask=~real)
        torch.testing.assert_close(got * keep, expected * keep, atol=1e-5, rtol=1e-4)

    def test_decoder_block_equals_torch(self):
        ours = transformer.DecoderBlock(16, 4, 32)
        theirs = nn.TransformerDecoderLayer(
            16, 4, 32, 0.0, F.relu, batch_first=True, norm_first=True
        )
        copy_attention(ours.self_attention, theirs.self_attn)
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        copy_rest(ours, theirs, ["self_norm", "cross_norm", "feed_forward_norm"])
        x, memory = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
        real = torch.arange(6) < torch.tensor([[6], [3]])
        expected = theirs(
            x,
            memory,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(5),
            memory_key_padding_mask=~real,
        )
        got = ours(x, memory, transformer.padding_mask(real))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


class TestEncoderDecoder:
    @pytest.fixture()
    def model(self):
        return transformer.EncoderDecoder(12, 16, 2, 32, 2).eval()

    def test_the_future_of_the_target_does_not_leak(self, model):
        source, target = torch.randint(1, 12, (2, 7)), torch.randint(1, 12, (2, 6))
        before = model(source, target)
        target[:, 4:] = 1 + target[:, 4:] % 11
        after = model(source, target)
        torch.testing.assert_close(after[:, :4], before[:, :4])
        assert not torch.allclose(after[:, 4:], before[:, 4:])

    def test_padding_of_the_source_does_not_count(self, model):
        source, target = torch.randint(1, 12, (2, 4)), torch.randint(1, 12, (2, 3))
        padded = F.pad(source, (0, 5))
        torch.testing.assert_close(model(padded, target), model(source, target))

    def test_greedy_writes_what_the_logits_say(self, model):
        source = torch.randint(1, 12, (3, 5))
        written = model.greedy(source, start=1, end=2, longest=6)
        given = torch.cat([torch.ones(3, 1, dtype=torch.long), written[:, :-1]], dim=1)
        best = model(source, given).argmax(dim=-1)
        for row, expected in zip(written.tolist(), best.tolist(), strict=True):
            length = row.index(2) + 1 if 2 in row else len(row)
            assert row[:length] == expected[:length]

    def test_greedy_stops_each_text_at_its_end(self, model, monkeypatch):
        def scripted(target, memory, mask):
            """Row 0 ends with its second word, row 1 with its fourth."""
            words = [[5, 2, 7, 7, 7], [6, 6, 6, 2, 7]]
            step = target.shape[1] - 1
            logits = torch.zeros(2, target.shape[1], 12)
            for row in range(2):
                logits[row, -1, words[row][step]] = 1.0
            return logits

        monkeypatch.setattr(model, "decode", scripted)
        written = model.greedy(torch.ones(2, 3, dtype=torch.long), 1, 2, longest=9)
        assert written.tolist() == [[5, 2, 0, 0], [6, 6, 6, 2]]

    def test_the_whole_model_equals_torchs_parts_put_together(self, model):
        """Embedding, positions, stacks, last norms: each from torch, same weights."""
        source = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
        target = torch.tensor([[1, 9, 4], [1, 5, 0]])
        norms = (model.encoder_norm, model.decoder_norm)
        for norm in norms:
            norm.gain.data, norm.bias.data = torch.randn(2, 16)
        memory = embedded(model, source)
        for ours in model.encoder:
            block = nn.TransformerEncoderLayer(
                16, 2, 32, 0.0, batch_first=True, norm_first=True
            )
            copy_attention(ours.attention, block.self_attn)
            copy_rest(ours, block, ["attention_norm", "feed_forward_norm"])
            memory = block(memory, src_key_padding_mask=source == 0)
        memory = F.layer_norm(memory, (16,), norms[0].gain, norms[0].bias)
        y = embedded(model, target)
        for ours in model.decoder:
            block = nn.TransformerDecoderLayer(
                16, 2, 32, 0.0, batch_first=True, norm_first=True
            )
            copy_attention(ours.self_attention, block.self_attn)
            copy_attention(ours.cross_attention, block.multihead_attn)
            copy_rest(ours, block, ["self_norm", "cross_norm", "feed_forward_norm"])
            hidden = nn.Transformer.generate_square_subsequent_mask(3)
            y = block(y, memory, hidden, memory_key_padding_mask=source == 0)
        y = F.layer_norm(y, (16,), norms[1].gain, norms[1].bias)
        expected = F.linear(y, model.embedding.weight)
        got = model(source, target)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


GPT2_SIZE = {"vocabulary": 40, "longest": 12, "d_model": 16, "heads": 4}
SLOW_TWINS = [transformer.attention, transformer.fused_attention]


@pytest.fixture()
def lm():
    return transformer.TransformerLM(**GPT2_SIZE, d_ff=48, blocks=3).eval()


class TestTransformerLM:
    @pytest.mark.parametrize("sizes", [(40, 12, 16, 48, 3), (300, 120, 96, 384, 4)])
    def test_parameters_are_counted_by_hand(self, sizes):
        v, n, d, f, b = sizes
        model = transformer.TransformerLM(v, n, d, 4, f, b)
        by_hand = d * (v + n) + b * (4 * d * d + 2 * d * f + 9 * d + f) + 2 * d
        assert sum(p.numel() for p in model.parameters()) == by_hand

    def test_equals_gpt2_with_the_same_weights(self, lm, gpt2):
        with torch.no_grad():
            for parameter in lm.parameters():  # biases and gains included
                parameter.add_(0.2 * torch.randn_like(parameter))
        load_into_gpt2(lm, gpt2)
        tokens = torch.randint(40, (2, 12))
        expected = gpt2(tokens, output_hidden_states=True)
        assert (lm(tokens) - expected.logits).abs().max() < 1e-5
        for ours, theirs in zip(lm.states(tokens), expected.hidden_states, strict=True):
            assert (ours - theirs).abs().max() < 1e-5

    def test_gradients_equal_those_of_gpt2(self, lm, gpt2):
        load_into_gpt2(lm, gpt2)
        tokens = torch.randint(40, (2, 12))
        gpt2(tokens, labels=tokens).loss.backward()
        logits = lm(tokens)[:, :-1].flatten(0, 1)
        F.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        for ours, theirs in [
            (lm.embedding.weight, gpt2.transformer.wte.weight),
            (lm.positions.weight, gpt2.transformer.wpe.weight),
            (lm.blocks[0].feed_forward.up.bias, gpt2.transformer.h[0].mlp.c_fc.bias),
        ]:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("attend", SLOW_TWINS)
    def test_slow_twins_agree(self, lm, attend):
        twin = transformer.TransformerLM(**GPT2_SIZE, d_ff=48, blocks=3, attend=attend)
        twin.load_state_dict(lm.state_dict())
        tokens = torch.randint(40, (2, 9))
        torch.testing.assert_close(twin(tokens), lm(tokens), atol=1e-6, rtol=1e-4)

    def test_causal_jacobian_is_lower_triangular(self, lm):
        tokens = torch.randint(40, (1, 6))

        def run(positions):
            weights = {"positions.weight": positions}
            return torch.func.functional_call(lm, weights, (tokens,))[0]

        start = torch.randn(12, 16)
        size = torch.autograd.functional.jacobian(run, start).norm(dim=(1, 3))[:, :6]
        assert (size.triu(1) == 0).all()
        assert (size.tril() > 0).sum() == 21

    def test_padding_at_the_end_is_never_seen(self, lm):
        tokens = torch.randint(1, 40, (2, 7))
        padded = F.pad(tokens, (0, 5))
        torch.testing.assert_close(lm(padded)[:, :7], lm(tokens))

    def test_input_and_output_share_one_matrix(self, lm):
        names = [n for n, p in lm.named_parameters() if p.shape == (40, 16)]
        assert names == ["embedding.weight"]
        before = lm(torch.tensor([[5]]))
        lm.embedding.weight.data[9] += 1  # a token that is not read
        change = (lm(torch.tensor([[5]])) - before)[0, 0]
        assert change[9] != 0 and not change[torch.arange(40) != 9].any()

    def test_weights_begin_as_those_of_gpt2(self):
        model = transformer.TransformerLM(300, 100, 192, 4, 512, 8)
        block = model.blocks[3]
        usual = 0.02 * 2  # at a quarter of GPT-2's width
        adds = usual / math.sqrt(16)
        for weight, std in [
            (model.embedding.weight, usual),
            (block.attention.query.weight, usual),
            (block.feed_forward.up.weight, usual),
            (block.attention.output.weight, adds),
            (block.feed_forward.down.weight, adds),
        ]:
            assert weight.std().item() == pytest.approx(std, rel=0.03)
        assert not any(p.any() for n, p in model.named_parameters() if "bias" in n)
        assert block.attention_norm.gain.eq(1).all()

    def test_positions_begin_as_waves_as_large_as_the_words(self):
        model = transformer.TransformerLM(300, 100, 192, 4, 512, 1)
        places = model.positions.weight.detach()
        waves = transformer.sinusoidal_positions(100, 192)
        torch.testing.assert_close(places / places.norm(), waves / waves.norm())
        words = model.embedding.weight.square().mean()
        assert places.square().mean().item() == pytest.approx(words.item(), rel=0.05)

    def test_before_training_every_token_is_about_as_likely(self):
        model = transformer.TransformerLM(300, 100, 128, 4, 512, 4)
        logits = model(torch.randint(300, (4, 50)))
        assert logits.log_softmax(-1).mean().item() == pytest.approx(
            -math.log(300), rel=0.05
        )

    def test_too_many_tokens_are_refused(self, lm):
        with pytest.raises(ValueError, match="13 tokens, but this model has 12"):
            lm(torch.ones(1, 13, dtype=torch.long))

    def test_causal_attention_refuses_a_mask_or_a_cache(self):
        x = torch.randn(1, 1, 4, 8)
        with pytest.raises(ValueError, match="brings its own mask"):
            transformer.causal_attention(x, x, x, transformer.causal_mask(4))
        with pytest.raises(ValueError, match="as many queries as keys"):
            transformer.causal_attention(x[:, :, :2], x, x)


class TestGenerate:
    @pytest.fixture()
    def lm(self, lm):
        with torch.no_grad():  # large weights: the tokens really differ in likelihood
            for parameter in lm.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        return lm

    @pytest.mark.parametrize("start", [2, [2, 7, 9, 30]])
    def test_greedy_takes_the_most_likely_token(self, lm, start):
        written = transformer.generate(lm, start, end=-1, longest=8, top_k=1, count=2)
        opening = torch.tensor([start] if isinstance(start, int) else start)
        tokens = torch.cat([opening, written[0]])[None]
        best = lm(tokens[:, :-1]).argmax(dim=-1)[0, len(opening) - 1 :]
        assert torch.equal(written[0], best)
        assert torch.equal(written[0], written[1])

    def test_a_cache_gives_the_logits_of_reading_all(self, lm):
        tokens = torch.randint(40, (3, 12))
        cache, whole = transformer.Cache(lm, 3, 12), lm(tokens)
        for first, last in [(0, 4), (4, 5), (5, 9), (9, 12)]:
            logits = lm.extend(tokens[:, first:last], cache)
            torch.testing.assert_close(logits, whole[:, last - 1], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("temperature", [0.5, 2.0])
    @pytest.mark.parametrize("top_k", [None, 3])
    def test_shares_are_those_of_the_softmax(self, lm, temperature, top_k):
        logits = lm(torch.tensor([[2]]))[0, -1] / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[-1]] = -math.inf
        expected = torch.softmax(logits, dim=-1)
        drawn = transformer.generate(
            lm, 2, -1, 1, temperature, top_k, torch.Generator().manual_seed(1), 20_000
        )
        shares = torch.bincount(drawn[:, 0], minlength=40) / 20_000
        assert (shares - expected).abs().max() < 0.015
        assert (shares > 0).sum() <= (top_k or 40)

    def test_rows_end_on_their_own_and_the_seed_decides(self, lm):
        def draw(seed):
            generator = torch.Generator().manual_seed(seed)
            return transformer.generate(lm, 2, 3, 12, 3.0, None, generator, 200)

        texts = draw(1)
        assert torch.equal(texts, draw(1))
        assert texts.shape != draw(2).shape or not torch.equal(texts, draw(2))
        ended = (texts == 3).any(dim=1)
        assert 0 < ended.sum() < 200
        for row in texts[ended].tolist():
            assert not any(row[row.index(3) + 1 :])

    def test_it_stops_when_all_have_ended(self, lm):
        first = transformer.generate(lm, 2, -1, 1, top_k=1)[0, 0].item()
        assert transformer.generate(lm, 2, first, 9, top_k=1, count=3).shape == (3, 1)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"temperature": 0}, "temperature is 0; expected above 0.*top_k=1"),
            ({"temperature": -1.0}, "temperature is -1"),
            ({"temperature": math.nan}, "temperature is nan"),
            ({"top_k": 0}, "top_k is 0; expected 1 to 40"),
            ({"top_k": 41}, "top_k is 41"),
            ({"count": 0}, "0 texts of 5 tokens"),
            ({"longest": 13}, r"1 \+ 13 tokens, but this model has 12"),
            ({"start": []}, "after 0 tokens"),
        ],
    )
    def test_bad_requests_are_refused(self, lm, wrong, message):
        with pytest.raises(ValueError, match=message):
            transformer.generate(lm, **{"start": 2, "end": 3, "longest": 5} | wrong)


@pytest.fixture()
def gpt2():
    """An untrained GPT-2 of transformers, as large as the fixture `lm`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=40,
        n_positions=12,
        n_embd=16,
        n_head=4,
        n_inner=48,
        n_layer=3,
        activation_function="gelu",
        bos_token_id=2,
        eos_token_id=3,
    )
    return GPT2LMHeadModel(config).eval()


def load_into_gpt2(ours: transformer.TransformerLM, theirs: nn.Module) -> None:
    """Our weights into GPT-2, whose maps are transposed, three of them in one."""
    body = theirs.transformer
    pairs = [(ours.norm.gain, body.ln_f.weight), (ours.norm.bias, body.ln_f.bias)]
    pairs += [(ours.embedding.weight, body.wte.weight)]
    pairs += [(ours.positions.weight, body.wpe.weight)]
    for block, layer in zip(ours.blocks, body.h, strict=True):
        part = block.attention
        maps = [part.query, part.key, part.value]
        pairs += [(torch.cat([m.weight.T for m in maps], 1), layer.attn.c_attn.weight)]
        pairs += [(torch.cat([m.bias for m in maps]), layer.attn.c_attn.bias)]
        for linear, conv in [
            (part.output, layer.attn.c_proj),
            (block.feed_forward.up, layer.mlp.c_fc),
            (block.feed_forward.down, layer.mlp.c_proj),
        ]:
            pairs += [(linear.weight.T, conv.weight), (linear.bias, conv.bias)]
        for norm, theirs_norm in [
            (block.attention_norm, layer.ln_1),
            (block.feed_forward_norm, layer.ln_2),
        ]:
            pairs += [(norm.gain, theirs_norm.weight), (norm.bias, theirs_norm.bias)]
    for source, target in pairs:
        target.data.copy_(source.data)


def embedded(model: transformer.EncoderDecoder, tokens: torch.Tensor) -> torch.Tensor:
    """Word vectors plus sines and cosines, by the formula of the paper."""
    table = torch.zeros(tokens.shape[1], 16)
    for t in range(tokens.shape[1]):
        for i in range(8):
            angle = torch.tensor(t / 10_000 ** (2 * i / 16))
            table[t, 2 * i], table[t, 2 * i + 1] = angle.sin(), angle.cos()
    return F.embedding(tokens, model.embedding.weight) + table


def copy_attention(
    ours: transformer.MultiHeadAttention, theirs: nn.MultiheadAttention
) -> None:
    """Our weights into torch's module, which keeps the three maps in one matrix."""
    maps = [ours.query, ours.key, ours.value]
    theirs.in_proj_weight.data = torch.cat([m.weight for m in maps])
    theirs.in_proj_bias.data = torch.cat([m.bias for m in maps])
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_rest(ours: nn.Module, theirs: nn.Module, norms: list[str]) -> None:
    """Feed-forward weights and random layer norms into torch's block."""
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    for number, name in enumerate(norms, 1):
        norm, their_norm = getattr(ours, name), getattr(theirs, f"norm{number}")
        norm.gain.data, norm.bias.data = torch.randn(2, norm.gain.numel())
        their_norm.weight.data, their_norm.bias.data = norm.gain.data, norm.bias.data
