// Calibrated codecs: errors within a step, escapes, rejected arguments, and kernels of every instruction set against
// scalar.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "codec/kernels/dispatch.hpp"
#include "orbitsplit/calibrated.hpp"

using namespace orbitsplit;

namespace {

CalibratedParameters parameters(std::size_t width) {
    CalibratedParameters p;
    p.key = {.codebook = 9, .cut = 5, .level = 2};
    p.step.assign(width, 0.5F);
    return p;
}

std::vector<float> normals(std::size_t count, float size) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, size);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
}

std::vector<std::byte> encode(const std::vector<float>& x, std::vector<std::int64_t> shape,
                              const CalibratedCodec& codec) {
    return compress(std::as_bytes(std::span(x)), DType::float32, shape, codec);
}

std::vector<float> decode(const std::vector<std::byte>& frame, const CalibratedCodec& codec) {
    const Decoded decoded = decompress(frame, codec);
    std::vector<float> values(decoded.data.size() / 4);
    std::memcpy(values.data(), decoded.data.data(), decoded.data.size());
    return values;
}

// A table that expects small codes of both signs.
SymbolFrequencies small_codes() {
    SymbolFrequencies table{};
    for (int code = -8; code <= 8; ++code) table[static_cast<std::uint8_t>(code)] = 14;
    return table;
}

void test_round_trip() {
    for (const bool is_coded : {false, true}) {
        CalibratedParameters p = parameters(70);
        if (is_coded) {
            p.tables = {small_codes()};
            p.table_of_channel.assign(70, 0);
        }
        const CalibratedCodec codec(p);
        std::vector<float> x = normals(300 * 70, 2);
        x[5] = 1e6F;
        x[6] = -3e38F;
        const auto frame = encode(x, {3, 100, 70}, codec);
        CHECK(frame.size() <= frame_bytes(DType::float32, std::array<std::int64_t, 3>{3, 100, 70}, codec));
        CHECK(!is_coded || frame.size() < x.size() * 3 / 4);
        const std::vector<float> y = decode(frame, codec);
        for (std::size_t i = 0; i < x.size(); ++i)
            CHECK(std::fabs(x[i] - y[i]) <= std::max(0.2500001F, std::fabs(x[i]) * 0x1p-8F));
        CHECK(inspect(frame).key == p.key && inspect(frame).codec == CodecKind::calibrated);
        const auto threaded = compress(std::as_bytes(std::span(x)), DType::float32,
                                       std::array<std::int64_t, 3>{3, 100, 70}, codec, 2);
        CHECK(threaded == frame);
        CHECK(decompress(frame, codec, {}, 2).data == decompress(frame, codec).data);
    }
}

void test_dead_zone_threshold_and_shrink() {
    CalibratedParameters p = parameters(4);
    p.rounding = 0.25F;
    p.shrink = 0.125F;
    p.threshold = {0, 0, 0.9F, 0};
    const CalibratedCodec codec(p);
    // In steps of one half: 0.74 -> 0, 0.76 -> 1, below the threshold, -2.9 -> -3.
    const std::vector<float> y = decode(encode({0.37F, 0.38F, 0.89F, -1.45F}, {4}, codec), codec);
    CHECK((y == std::vector<float>{0, 0.4375F, 0, -1.4375F}));
}

void test_transforms_are_orthogonal() {
    for (const std::int32_t block : {2, 16, 64}) {
        CalibratedParameters p = parameters(64);
        p.hadamard = block;
        p.shift.assign(64, 3);
        p.scale.assign(64, 0.5F);
        p.step.assign(64, 0.25F);
        const CalibratedCodec codec(p);
        const std::vector<float> x = normals(5 * 64, 1.0F);
        const std::vector<float> y = decode(encode(x, {5, 64}, codec), codec);
        // An orthogonal transform preserves the norm of an error: half a step for each coefficient, divided by the
        // scale.
        double squares = 0;
        for (std::size_t i = 0; i < x.size(); ++i) squares += std::pow(double{x[i]} - double{y[i]}, 2);
        CHECK(squares > 0 && squares <= static_cast<double>(x.size()) * std::pow(0.25 / 2 / 0.5, 2));
    }
}

void test_inverse_of_a_matrix_that_is_not_orthogonal() {
    CalibratedParameters p = parameters(2);
    p.matrix = {2, 0, 1, 0.5F};  // y = (2 a, a + b / 2)
    p.inverse = {0.5F, 0, -1, 2};
    const CalibratedCodec codec(p);
    // Of the second row y is (-2, -0.75), which is rounded to (-2, -1).
    CHECK((decode(encode({3, 5, -1, 0.5F}, {2, 2}, codec), codec) == std::vector<float>{3, 5, -1, 0}));

    const auto refused = [&](std::vector<float> matrix, std::vector<float> inverse, const char* message) {
        CalibratedParameters other = p;
        other.matrix = std::move(matrix);
        other.inverse = std::move(inverse);
        CHECK_THROWS(CalibratedCodec(other), std::invalid_argument, message);
    };
    refused({}, p.inverse, "inverse is given without a matrix");
    refused(p.matrix, {1, 0, 0}, "inverse has 3 numbers, a width of 2 needs 4");
    refused({2, 0, std::nanf(""), 1}, p.inverse, "matrix[1, 0] is nan, it must be from -2^40 to 2^40");
    refused(p.matrix, {0.5F, 0x1p41F, 0, 0}, "inverse[0, 1] is 2.19902e+12, it must be from -2^40 to 2^40");
    refused(p.matrix, {0.5F, 0, -1, 2.25F},
            "inverse times matrix deviates from the identity by 0.375 in row 1, the limit is 0.01");
    refused(p.matrix, {}, "row 0 of matrix has the squared norm 4, an orthogonal matrix has 1");
}

void test_inverse_of() {
    // Exact in float32, with a zero on the diagonal, which takes an exchange of rows.
    CHECK((inverse_of(std::vector<float>{0, 2, 0, 1, 0, 0, 0, 0, -4}, 3) ==
           std::vector<float>{0, 1, 0, 0.5F, 0, 0, 0, 0, -0.25F}));
    const auto refused = [](std::vector<float> matrix, std::size_t width, const char* message) {
        CHECK_THROWS(inverse_of(matrix, width), std::invalid_argument, message);
    };
    refused({}, 0, "matrix has 0 numbers, a width of 0 needs its square, and at least 1");
    refused({1, 2, 3}, 2, "matrix has 3 numbers, a width of 2 needs its square");
    refused({1, 2, 2, 4}, 2, "matrix has no inverse: its column 1 has the pivot 0");
    refused({1, 0, std::nanf(""), 1}, 2, "matrix has no inverse: its column 1 has the pivot nan");
    refused({0x1p-140F}, 1, "matrix has no inverse in float32: a number of it is 1.3938e+42");
}

void test_refusals() {
    const CalibratedCodec codec(parameters(4));
    CHECK_THROWS(encode({1, 2, std::nanf(""), 4}, {4}, codec), std::invalid_argument,
                 "element 2 is nan, a calibrated codec takes finite values only");
    CHECK_THROWS(encode({1, 2, 3}, {3}, codec), std::invalid_argument,
                 "rows have 3 elements, the codec has 4 channels");
    CHECK_THROWS(
        compress({}, DType::float32, std::array<std::int64_t, 1>{4}, Codec{.kind = CodecKind::calibrated}),
        std::invalid_argument, "needs a CalibratedCodec");
    const auto frame = encode({1, 2, 3, 4}, {4}, codec);
    CHECK_THROWS(decompress(frame), CorruptFrameError,
                 "frame needs codebook 9, cut 5, level 2, none was given");
    CalibratedParameters other = parameters(4);
    other.key.level = 3;
    CHECK_THROWS(decompress(frame, CalibratedCodec(other)), CorruptFrameError,
                 "frame needs codebook 9, cut 5, level 2, this codec is codebook 9, cut 5, level 3");
    CalibratedParameters bad = parameters(4);
    bad.step[3] = 0;
    CHECK_THROWS(CalibratedCodec(bad), std::invalid_argument, "step[3] is 0");
}

// Every class of floating-point number, from random bits.
std::vector<float> any_floats(std::size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> values(count);
    for (float& value : values) {
        std::uint32_t bits = static_cast<std::uint32_t>(random());
        // Mostly near the steps, sometimes any finite number.
        if (random() % 4 != 0) bits = (bits & 0x83FFFFFF) | 0x3C000000;
        if ((bits & 0x7F800000) == 0x7F800000) bits ^= 0x40000000;
        value = std::bit_cast<float>(bits);
    }
    return values;
}

void compare_kernels(const kernels::Channels& fast, std::size_t length, unsigned seed) {
    const kernels::Channels& slow = kernels::scalar::channels;
    constexpr std::size_t count = 5;
    const layout::Rows rows{count, length};
    const std::vector<float> x = any_floats(count * length, seed);
    std::vector<float> positive = any_floats(3 * length, seed + 1);
    for (float& number : positive) number = std::clamp(std::fabs(number), 0x1p-100F, 0x1p100F);
    const std::vector<float> shift = any_floats(length, seed + 2);
    std::vector<float> inverse(length);
    for (std::size_t c = 0; c < length; ++c) inverse[c] = 1 / positive[c];
    for (const unsigned options : {0U, 1U, 2U, 3U}) {
        const kernels::ChannelScales scales{
            .shift = (options & 1U) != 0 ? shift.data() : nullptr,
            .step = positive.data(),
            .inverse_step = inverse.data(),
            .threshold = (options & 2U) != 0 ? positive.data() + length : nullptr,
            .rounding = 0.375F,
            .shrink = (options & 2U) != 0 ? 0.0625F : 0.0F};
        std::array<std::vector<std::int8_t>, 2> codes;
        std::array<std::vector<std::byte>, 2> values;
        std::array<std::vector<float>, 2> back;
        std::array<std::size_t, 2> found{};
        for (std::size_t k = 0; k < 2; ++k) {
            const kernels::Channels& kernel = k == 0 ? slow : fast;
            codes[k].resize(count * length);
            values[k].resize(2 * count * length);
            back[k].resize(count * length);
            found[k] = kernel.quantise(std::as_bytes(std::span(x)).data(), rows, scales, codes[k].data(),
                                       values[k].data());
            if (found[k] == kernels::not_finite) continue;
            const std::size_t used =
                kernel.dequantise(codes[k].data(), rows, scales, values[k].data(), found[k],
                                  std::as_writable_bytes(std::span(back[k])).data());
            CHECK(used == found[k]);
        }
        CHECK(found[0] == found[1]);
        if (found[0] == kernels::not_finite) continue;
        CHECK(codes[0] == codes[1] && values[0] == values[1]);
        CHECK(std::memcmp(back[0].data(), back[1].data(), 4 * count * length) == 0);
    }
}

void compare_transforms(const kernels::Channels& fast, std::size_t length, unsigned seed) {
    const kernels::Channels& slow = kernels::scalar::channels;
    for (std::size_t rows = 1; rows <= 64; rows += rows < 8 ? 1 : 14) {
        std::vector<std::int8_t> in(rows * length);
        for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::int8_t>(seed + i * 7 + i / 64);
        std::vector<std::int8_t> a(in.size());
        std::vector<std::int8_t> b(in.size());
        slow.to_columns(in.data(), {rows, length}, a.data());
        fast.to_columns(in.data(), {rows, length}, b.data());
        CHECK(a == b);
        fast.to_rows(a.data(), {rows, length}, b.data());
        CHECK(b == in);
    }
    const std::vector<float> x = normals(24 * length, 1);
    const std::vector<float> matrix = normals(length * length, 1);
    std::vector<float> a(x.size());
    std::vector<float> b(x.size());
    for (const std::size_t rows : {1UL, 2UL, 5UL, 6UL, 9UL, 24UL}) {
        slow.multiply(x.data(), {rows, length}, matrix.data(), a.data());
        fast.multiply(x.data(), {rows, length}, matrix.data(), b.data());
        CHECK(a == b);
    }
    for (std::size_t block = 2; block <= length && length % block == 0; block *= 2) {
        a = b = x;
        slow.hadamard(a.data(), a.size(), block, 0.7F);
        fast.hadamard(b.data(), b.size(), block, 0.7F);
        CHECK(a == b);
    }
}

void test_kernels_of_every_isa() {
    const std::string before(isa());
    for (const std::string& name : isas()) {
        set_isa(name);
        const kernels::Channels& fast = *kernels::active().channels;
        for (const std::size_t length : {1UL, 2UL, 15UL, 16UL, 63UL, 64UL, 65UL, 96UL, 128UL, 200UL}) {
            for (unsigned seed = 0; seed < 20; ++seed) compare_kernels(fast, length, 100 * seed);
            compare_transforms(fast, length, 3);
        }
    }
    set_isa(before);
}

}  // namespace

int main() {
    test_round_trip();
    test_dead_zone_threshold_and_shrink();
    test_transforms_are_orthogonal();
    test_inverse_of_a_matrix_that_is_not_orthogonal();
    test_inverse_of();
    test_refusals();
    test_kernels_of_every_isa();
    return failures;
}
