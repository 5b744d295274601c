"""transformer.py against torch's own modules, and properties that must hold."""

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
            tgt_mask=~transformer.causal_mask(5),
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

    def test_greedy_writes_what_the_logits_say_and_stops(self, model):
        source = torch.randint(1, 12, (3, 5))
        written = model.greedy(source, start=1, end=2, longest=6)
        assert written.shape[1] <= 6
        given = torch.cat([torch.ones(3, 1, dtype=torch.long), written[:, :-1]], dim=1)
        best = model(source, given).argmax(dim=-1)
        for row, expected in zip(written.tolist(), best.tolist(), strict=True):
            length = row.index(2) + 1 if 2 in row else len(row)
            assert row[:length] == expected[:length]
            assert not any(row[length:])

    def test_learns_to_reverse(self, model):
        adam = torch.optim.Adam(model.train().parameters(), lr=5e-3)
        for _ in range(60):
            source = torch.randint(3, 12, (32, 3))
            start = torch.ones(32, 1, dtype=torch.long)
            target = torch.cat([start, source.flip(1)], dim=1)
            logits = model(source, target[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert loss.item() < 0.8 * torch.log(torch.tensor(9.0)).item()


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
