// The numeric kernels of a decoder's layer beside its products: one struct of function pointers.
//
// vector/rows.hpp has the only implementation, on vectors of eight floats; each instruction set compiles it for itself.
// As in codec/kernels/kernels.hpp, files of an instruction set define everything but their table in anonymous namespaces.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orbitsplit::decoder {

// Lanes of a sum; all counts of floats are multiples of it.
inline constexpr std::size_t lanes = 8;

// The tokens that the query heads of one key head of one new token see.
struct Seen {
    const float* keys;
    const float* values;
    std::size_t key_stride;  // floats from one token to the next
    std::size_t value_stride;
    std::size_t tokens;
    const std::uint8_t* visible;  // [tokens]; null: all
};

struct Kernels {
    // out = x / sqrt(mean(x^2) + epsilon) * scale, for `count` floats; out may be x.
    void (*normalise)(const float* x, std::size_t count, const float* scale, float epsilon, float* out);

    // x = x cos + (-second half, first half) sin, for a head of `size` floats, a multiple of 2 lanes.
    void (*rotate)(float* x, std::size_t size, const float* cosines, const float* sines);

    // out[heads, size] = softmax(scale q K^T) V for queries [heads, size], size being a multiple of 2 lanes. `scores` is
    // [heads, room] floats of working memory, room being at least the tokens rounded up to lanes.
    void (*attend)(const float* queries, std::size_t heads, std::size_t size, float scale, const Seen& seen,
                   float* scores, std::size_t room, float* out);

    // gate = act(gate) * up; indexed by Activation.
    void (*activate[2])(float* gate, const float* up, std::size_t count);

    // x += y
    void (*add)(float* x, const float* y, std::size_t count);
};

namespace scalar {
extern const Kernels decoder_kernels;
}
namespace avx2 {
extern const Kernels decoder_kernels;
}

// Those of active_isa(); a set without its own uses an earlier set's.
const Kernels& active();

}  // namespace orbitsplit::decoder
