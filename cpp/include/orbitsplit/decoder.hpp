// One layer of a decoder on quantised weights, for few tokens at a time: attention with rotary positions over a KV cache
// of the caller, then a gated MLP. The layers of Llama, Mistral, Qwen2, Qwen3, Gemma 3 and others have this form.
//
//     a       = rms(x, before_attention)
//     q, k, v = a W_q^T + b_q, a W_k^T + b_k, a W_v^T + b_v   in heads of head_size
//     q, k    = rotate(rms(q, queries)), rotate(rms(k, keys))
//     o       = softmax(attention_scale q K^T) V              K and V: the cache, with k and v appended by the caller
//     h       = x + rms(o W_o^T + b_o, after_attention)
//     m       = rms(h, before_mlp)
//     y       = h + rms((act(m W_g^T + b_g) * (m W_u^T + b_u)) W_d^T + b_d, after_mlp)
//
// rms(x, n) = x / sqrt(mean(x^2) + n.epsilon) * n.scale, and x itself where n has no scale. rotate(x) = x cos + x' sin,
// where x' is (-second half, first half) of x. Two key heads and four query heads: queries 0 and 1 read key head 0.
//
// Products are those of weights.hpp. Every other sum has eight lanes (element i in lane i % 8), added up as those of a
// product; exp is a polynomial with a relative error below 2^-22. So results are the same bits on every instruction set and
// for any number of threads. NaN and infinity give NaN, with any bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "orbitsplit/execution.hpp"
#include "orbitsplit/export.hpp"
#include "orbitsplit/weights.hpp"

namespace orbitsplit {

struct RmsNorm {
    std::span<const float> scale;  // empty: no norm
    float epsilon = 0.0F;
};

struct QuantizedLinear {
    WeightMatrix weight;
    std::span<const float> bias;  // empty: none
};

// act of the gate: silu is x / (1 + exp(-x)), gelu_tanh the approximation of GELU by tanh.
enum class Activation : std::uint8_t { silu = 0, gelu_tanh = 1 };

// A layer in memory of the caller. hidden is the columns of `query`, the intermediate size the rows of `gate`.
struct DecoderLayer {
    std::int64_t heads = 0;
    std::int64_t kv_heads = 0;
    std::int64_t head_size = 0;
    float attention_scale = 1.0F;
    Activation activation = Activation::silu;
    RmsNorm before_attention, queries, keys, after_attention, before_mlp, after_mlp;
    QuantizedLinear query, key, value, output, gate, up, down;
};

// Keys and values [sequences, kv_heads, tokens, head_size] of all tokens so far, the last `new_tokens` of each sequence
// being new. `strides` are the floats from one sequence, head and token to the next; the numbers of a head are side by
// side. `visible` is [sequences, new_tokens, tokens], not 0 for the tokens that a new one sees; if it is empty, a new one
// sees itself and all before it.
struct KeyValueCache {
    std::span<const float> keys, values;
    std::array<std::int64_t, 3> key_strides{}, value_strides{};
    std::int64_t sequences = 0;
    std::int64_t tokens = 0;
    std::int64_t new_tokens = 1;
    std::span<const std::uint8_t> visible = {};
};

// All functions throw std::invalid_argument for a layer whose parts do not fit each other: head_size is a multiple of
// 16, heads a multiple of kv_heads, and the matrices have the shapes that these, hidden and the intermediate size give.
ORBITSPLIT_API void check(const DecoderLayer& layer);

// Bytes of working memory, at any address, for `rows` new tokens in all sequences together, which see `tokens` tokens at
// most.
ORBITSPLIT_API std::uint64_t decoder_scratch_bytes(const DecoderLayer& layer, std::int64_t rows,
                                                   std::int64_t tokens);

// Computes q, k and v of new tokens x[rows, hidden], q and k rotated by cosines and sines [rows, head_size], into
// queries [rows, heads, head_size], keys and values [rows, kv_heads, head_size].
ORBITSPLIT_API void project(const DecoderLayer& layer, std::span<const float> x, std::int64_t rows,
                            std::span<const float> cosines, std::span<const float> sines,
                            std::span<float> queries, std::span<float> keys, std::span<float> values,
                            std::span<std::byte> scratch, const Execution& execution = {});

// Computes y[rows, hidden] from x and the queries that project() gave, and the caches that have its keys and values: of
// one group of sequences, or of several that share the call and so read the weights once. The rows of the first cache come
// first, and of a cache those of its first sequence; each gets the bits that it gets without the others. A new token that
// sees none has o = 0.
ORBITSPLIT_API void attend(const DecoderLayer& layer, std::span<const float> x, std::int64_t rows,
                           std::span<const float> queries, std::span<const KeyValueCache> caches,
                           std::span<float> y, std::span<std::byte> scratch, const Execution& execution = {});

}  // namespace orbitsplit
