#include "codec/calibrated/calibrated_rows.hpp"

#include <algorithm>
#include <cstring>

#include "codec/kernels/dispatch.hpp"
#include "codec/kernels/elements.hpp"
#include "support/stop.hpp"

namespace orbitsplit::calibrated {

namespace {

using elements::BFloat16;
using elements::Float16;
using elements::Float32;
using elements::load_single;
using elements::store;
using kernels::not_finite;
using layout::Rows;
void load_floats(const std::byte* in, DType dtype, std::size_t count, float* out) {
    if (dtype == DType::float32)
        std::memcpy(out, in, count * sizeof(float));
    else if (dtype == DType::bfloat16)
        kernels::active().convert->from_bf16[static_cast<std::size_t>(DType::float32)](
            in, count, reinterpret_cast<std::byte*>(out));
    else
        for (std::size_t i = 0; i < count; ++i) out[i] = load_single<Float16>(in, i);
}

// NaN, which a transform can produce from numbers near the end of the range, becomes the largest: an arbitrary value,
// but the same on every processor.
float clamp(float x, float largest) {
    const float below = x < largest ? x : largest;
    return below > -largest ? below : -largest;
}

void store_floats(float* numbers, DType dtype, std::size_t count, std::byte* out) {
    if (dtype == DType::float32) {
        for (std::size_t i = 0; i < count; ++i) store(out, i, clamp(numbers[i], Float32::largest));
    } else if (dtype == DType::bfloat16) {
        for (std::size_t i = 0; i < count; ++i) numbers[i] = clamp(numbers[i], BFloat16::largest);
        kernels::active().convert->to_bf16[static_cast<std::size_t>(DType::float32)](
            reinterpret_cast<const std::byte*>(numbers), count, out);
    } else {
        for (std::size_t i = 0; i < count; ++i)
            store(out, i, Float16::from_single(clamp(numbers[i], Float16::largest)));
    }
}

// T ((x - shift) scale) of some rows in `y`. The result replaces them, or follows them if a matrix needs a second
// buffer.
float* transform(const Prepared& codec, Rows rows, float* y) {
    const CalibratedParameters& p = codec.parameters;
    const kernels::Channels& channels = *kernels::active().channels;
    const std::size_t count = rows.count * rows.length;
    for (std::size_t row = 0; row < rows.count; ++row) {
        float* numbers = y + row * rows.length;
        for (std::size_t c = 0; c < p.shift.size(); ++c) numbers[c] -= p.shift[c];
        for (std::size_t c = 0; c < p.scale.size(); ++c) numbers[c] *= p.scale[c];
    }
    if (p.matrix.empty()) {
        channels.hadamard(y, count, static_cast<std::size_t>(p.hadamard), codec.hadamard_scale);
        return y;
    }
    channels.multiply(y, rows, codec.transposed.data(), y + count);
    return y + count;
}

float* transform_back(const Prepared& codec, Rows rows, float* y) {
    const CalibratedParameters& p = codec.parameters;
    const kernels::Channels& channels = *kernels::active().channels;
    const std::size_t count = rows.count * rows.length;
    if (p.matrix.empty()) {
        channels.hadamard(y, count, static_cast<std::size_t>(p.hadamard), codec.hadamard_scale);
    } else {
        const std::vector<float>& back = p.inverse.empty() ? p.matrix : codec.transposed_inverse;
        channels.multiply(y, rows, back.data(), y + count);
        y += count;
    }
    for (std::size_t row = 0; row < rows.count; ++row) {
        float* numbers = y + row * rows.length;
        for (std::size_t c = 0; c < p.scale.size(); ++c) numbers[c] *= codec.inverse_scale[c];
        for (std::size_t c = 0; c < p.shift.size(); ++c) numbers[c] += p.shift[c];
    }
    return y;
}

// Calls `visit(rows of a block, first element)` until it returns false.
template <class Visit>
bool for_each_block(Rows rows, const Execution& execution, Visit visit) {
    for (std::size_t row = 0; row < rows.count; row += block_rows) {
        throw_if_stopped(execution);
        if (!visit(Rows{std::min(block_rows, rows.count - row), rows.length}, row * rows.length))
            return false;
    }
    return true;
}

}  // namespace

std::size_t scratch_floats(const Prepared& codec, DType dtype, Rows rows) {
    if (dtype == DType::float32 && !codec.transforms()) return 0;
    return std::min(block_rows, rows.count) * rows.length * (codec.parameters.matrix.empty() ? 1 : 2);
}

std::size_t quantise_rows(const Prepared& codec, const std::byte* in, DType dtype, Rows rows,
                          std::int8_t* codes, std::byte* values, float* scratch, const Execution& execution) {
    const kernels::ChannelScales scales = codec.scales();
    const auto quantise = kernels::active().channels->quantise;
    std::size_t escapes = 0;
    const bool is_finite = for_each_block(rows, execution, [&](Rows block, std::size_t first) {
        const std::byte* numbers = in + first * item_bytes(dtype);
        if (scratch != nullptr) {
            load_floats(numbers, dtype, block.count * block.length, scratch);
            const float* y = codec.transforms() ? transform(codec, block, scratch) : scratch;
            numbers = reinterpret_cast<const std::byte*>(y);
        }
        const std::size_t found = quantise(numbers, block, scales, codes + first, values + 2 * escapes);
        if (found == not_finite) return false;
        escapes += found;
        return true;
    });
    return is_finite ? escapes : not_finite;
}

std::size_t dequantise_rows(const Prepared& codec, const std::int8_t* codes, Rows rows,
                            const std::byte* values, std::size_t count, DType dtype, std::byte* out,
                            float* scratch, const Execution& execution) {
    const kernels::ChannelScales scales = codec.scales();
    const auto dequantise = kernels::active().channels->dequantise;
    std::size_t used = 0;
    const bool is_valid = for_each_block(rows, execution, [&](Rows block, std::size_t first) {
        std::byte* here = out + first * item_bytes(dtype);
        std::byte* numbers = scratch != nullptr ? reinterpret_cast<std::byte*>(scratch) : here;
        const std::size_t taken =
            dequantise(codes + first, block, scales, values + 2 * used, count - used, numbers);
        if (taken == not_finite) return false;
        used += taken;
        if (scratch != nullptr)
            store_floats(codec.transforms() ? transform_back(codec, block, scratch) : scratch, dtype,
                         block.count * block.length, here);
        return true;
    });
    return is_valid ? used : not_finite;
}

}  // namespace orbitsplit::calibrated
