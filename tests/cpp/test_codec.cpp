// Codecs: what decoding returns and what encoding rejects, checked element by element in double precision.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "check.hpp"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"

using namespace orbitsplit;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float largest = std::numeric_limits<float>::max();

std::vector<std::byte> encode(const std::vector<float>& x, std::vector<std::int64_t> shape,
                              const char* codec) {
    return compress(std::as_bytes(std::span(x)), DType::float32, shape, parse_codec(codec));
}

std::vector<float> round_trip(const std::vector<float>& x, std::vector<std::int64_t> shape,
                              const char* codec) {
    const std::vector<std::byte> frame = encode(x, shape, codec);
    CHECK(frame.size() <= frame_bytes(DType::float32, shape, parse_codec(codec)));
    const Decoded decoded = decompress(frame);
    CHECK(decoded.shape == shape && decoded.dtype == DType::float32);
    std::vector<float> values(decoded.data.size() / 4);
    if (!values.empty()) std::memcpy(values.data(), decoded.data.data(), decoded.data.size());
    return values;
}

std::vector<float> normals(std::size_t count, float size) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, size);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
}

void test_parse() {
    CHECK(parse_codec("raw").kind == CodecKind::raw);
    CHECK(parse_codec("int8").group == 64 && parse_codec("int4:128").group == 128);
    CHECK(parse_codec("topk").keep == 0.25 && parse_codec("topk:0.1").keep == 0.1);
    for (const char* text :
         {"", "int9", "INT8", "raw:1", "bf16:", "int8:", "int8:x", "int8:64x", "topk:", "topk:?"})
        CHECK_THROWS(parse_codec(text), std::invalid_argument, "is unknown; valid are raw, bf16, int8");
    for (const char* text : {"int8:0", "int8:-8", "int4:12", "int8:65544"})
        CHECK_THROWS(parse_codec(text), std::invalid_argument, "it must be a multiple of 8 from 8 to 65536");
    for (const char* text : {"topk:0", "topk:1.01", "topk:-1", "topk:nan"})
        CHECK_THROWS(parse_codec(text), std::invalid_argument, "it must be in (0, 1]");
}

void test_exact_codecs() {
    const std::vector<float> x = {0.0F, -0.0F, 1.5F, -infinite, infinite, std::nanf(""), 1e-45F, largest};
    const std::vector<float> raw = round_trip(x, {2, 4}, "raw");
    CHECK(std::memcmp(raw.data(), x.data(), 32) == 0);
    const std::vector<float> bf16 = round_trip(x, {8}, "bf16");
    CHECK(std::memcmp(bf16.data(), x.data(), 20) == 0);
    CHECK(std::isnan(bf16[5]) && bf16[6] == 0 && bf16[7] == infinite);
    const std::vector<float> ties = {1.0F + 0x1p-8F, 1.0F + 0x3p-8F, -(1.0F + 0x1.8p-8F)};
    CHECK((round_trip(ties, {3}, "bf16") == std::vector<float>{1.0F, 1.0F + 0x1p-6F, -(1.0F + 0x1p-7F)}));
}

// |x - x'| <= s (1/2 + 2^-15) with s at most 2^-7 above m / top.
void check_group_bound(const std::vector<float>& x, std::int64_t length, const char* codec, double top) {
    const std::int64_t rows = static_cast<std::int64_t>(x.size()) / length;
    const std::vector<float> y = round_trip(x, {rows, length}, codec);
    const std::int64_t group = parse_codec(codec).group;
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t start = 0; start < length; start += group) {
            const auto first = static_cast<std::size_t>(row * length + start);
            const std::size_t stop = first + static_cast<std::size_t>(std::min(group, length - start));
            double m = 0;
            for (std::size_t i = first; i < stop; ++i) m = std::max(m, std::fabs(double{x[i]}));
            const double scale = std::max(m / top * (1 + 0x1p-7), 0x1p-126);
            for (std::size_t i = first; i < stop; ++i)
                CHECK(std::fabs(double{x[i]} - double{y[i]}) <= scale * (0.5 + 0x1p-15));
        }
}

void test_groups() {
    for (const float size : {1.0F, 1e-30F, 1e-44F, 1e37F}) {
        check_group_bound(normals(3 * 129, size), 129, "int8", 127);
        check_group_bound(normals(3 * 129, size), 129, "int4", 7);
        check_group_bound(normals(5 * 640, size), 640, "int4:8", 7);
        check_group_bound(normals(1300, size), 1300, "int4:1304", 7);
    }
    check_group_bound({largest, -largest, largest / 2}, 3, "int8", 127);
    check_group_bound({largest, -largest, largest / 2}, 3, "int4", 7);
    CHECK((round_trip(std::vector<float>(70, -0.0F), {70}, "int8") == std::vector<float>(70, 0.0F)));
    // Integer multiples of a power of two are recovered exactly.
    std::vector<float> grid(255);
    std::iota(grid.begin(), grid.end(), -127.0F);
    CHECK(round_trip(grid, {255}, "int8:256") == grid);
}

void test_topk() {
    const std::vector<float> x = {1, -3, 3, 2, 0, 0, 0, -0.0F};
    CHECK((round_trip(x, {2, 4}, "topk") == std::vector<float>{0, -3, 0, 0, 0, 0, 0, 0}));
    CHECK((round_trip(x, {2, 4}, "topk:0.5") == std::vector<float>{0, -3, 3, 0, 0, 0, 0, 0}));
    CHECK(round_trip(x, {2, 4}, "topk:1") == x);
    // Few values of many: positions as gaps, some larger than 255, in the first row and in the last.
    std::vector<float> sparse(2 * 3000, 0.5F);
    sparse[0] = sparse[300] = sparse[2999] = 4;
    sparse[3000 + 255] = sparse[3000 + 511] = sparse[3000 + 1000] = -8;
    const std::vector<float> kept = round_trip(sparse, {2, 3000}, "topk:0.001");
    for (std::size_t i = 0; i < sparse.size(); ++i) CHECK(kept[i] == (sparse[i] == 0.5F ? 0 : sparse[i]));
    CHECK(inspect(encode(sparse, {2, 3000}, "topk:0.001")).index_gaps);
    CHECK(!inspect(encode(sparse, {2, 3000}, "topk")).index_gaps);
    CHECK((round_trip({largest, 1}, {2}, "topk") == std::vector<float>{0x1.FEp127F, 0}));
}

void test_topk_against_sorting() {
    std::mt19937 random(11);
    for (const std::size_t length : {1UL, 7UL, 64UL, 333UL, 1025UL}) {
        std::vector<float> x(length);
        for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 21) - 10);
        std::vector<std::size_t> order(length);
        std::iota(order.begin(), order.end(), 0U);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return std::fabs(x[a]) > std::fabs(x[b]); });
        std::vector<float> expected(length);
        const auto kept = std::max(1.0, std::nearbyint(0.3 * static_cast<double>(length)));
        for (std::size_t k = 0; k < static_cast<std::size_t>(kept); ++k) expected[order[k]] = x[order[k]];
        CHECK(round_trip(x, {static_cast<std::int64_t>(length)}, "topk:0.3") == expected);
    }
}

// Kernels may search the threshold of a row near that of the previous row: here it is sometimes near, sometimes far,
// sometimes exactly at the end of the range, and sometimes shared by more values than are kept.
void test_topk_of_rows_that_differ() {
    constexpr std::size_t length = 331;
    const std::vector<float> row = normals(length, 3);
    std::vector<float> x;
    for (const float scale : {1.0F, 1.01F, 1e-3F, 1e30F, 0.0F, 1e-44F, 1.0F, 1.0F, 1.0625F, -1.0F})
        for (const float value : row) x.push_back(value * scale);
    for (std::size_t i = 0; i < length; ++i) x.push_back(i % 3 == 0 ? -1.5F : 1.5F);
    const auto rows = static_cast<std::int64_t>(x.size() / length);
    for (const char* codec : {"topk:0.003", "topk:0.1", "topk:0.5", "topk:1"}) {
        const std::vector<float> together = round_trip(x, {rows, length}, codec);
        for (std::int64_t i = 0; i < rows; ++i) {
            const auto start = x.begin() + i * static_cast<std::int64_t>(length);
            const std::vector<float> alone = round_trip({start, start + length}, {length}, codec);
            CHECK(std::equal(alone.begin(), alone.end(), together.begin() + (start - x.begin())));
        }
    }
}

void test_shapes() {
    const auto ones = [](std::vector<std::int64_t> shape, std::size_t count, const char* codec) {
        const std::vector<float> values = round_trip(std::vector<float>(count, 1.0F), shape, codec);
        return std::ranges::all_of(values, [](float value) { return std::fabs(value - 1) < 0.01F; });
    };
    for (const char* codec : {"raw", "bf16", "int8", "int4", "topk:1", "lossless_bf16"}) {
        CHECK(ones({}, 1, codec));
        CHECK(ones({1}, 1, codec));
        CHECK(ones({1, 2, 1, 2, 1, 2, 1, 1}, 8, codec));
        CHECK(round_trip({}, {0}, codec).empty());
        CHECK(round_trip({}, {3, 0}, codec).empty());
        CHECK(round_trip({}, {0, 5, 7}, codec).empty());
    }
}

// The largest float16 rounds to 65536 in bfloat16, and a group may be dequantised to more: both must stay finite.
void test_float16_stays_finite() {
    std::vector<std::uint16_t> halves(64, 0x7BFF);
    halves[1] = 0xFBFF;
    const std::array<std::int64_t, 1> shape = {64};
    for (const char* codec : {"raw", "bf16", "int8", "int4", "topk:1", "lossless_bf16"}) {
        const auto frame =
            compress(std::as_bytes(std::span(halves)), DType::float16, shape, parse_codec(codec));
        const Decoded decoded = decompress(frame);
        CHECK(std::memcmp(decoded.data.data(), halves.data(), 128) == 0);
    }
}

void test_refused_input() {
    const auto refuses = [](std::vector<float> x, const char* codec, const char* text) {
        CHECK_THROWS(encode(x, {static_cast<std::int64_t>(x.size())}, codec), std::invalid_argument, text);
    };
    for (const char* codec : {"int8", "int4", "topk"}) {
        refuses({1, 2, std::nanf(""), infinite}, codec, "element 2 is nan");
        refuses({1, infinite}, codec, "element 1 is inf");
        refuses({-infinite}, codec, "element 0 is -inf");
    }
    const std::array<float, 3> x = {1, 2, 3};
    const auto data = std::as_bytes(std::span(x));
    const auto attempt = [&](std::vector<std::int64_t> shape, const Codec& codec) {
        return compress(data, DType::float32, shape, codec);
    };
    CHECK_THROWS(attempt({4}, {}), std::invalid_argument, "data has 12 bytes, its shape needs 16");
    CHECK_THROWS(attempt({-3}, {}), std::invalid_argument, "shape has a negative extent");
    CHECK_THROWS(attempt({std::int64_t{1} << 61, 2}, {}), std::invalid_argument, "2^63 bytes or more");
    CHECK_THROWS(attempt({1, 1, 1, 1, 1, 1, 1, 1, 3}, {}), std::invalid_argument,
                 "shape has rank 9, the limit is 8");
    CHECK_THROWS(attempt({3}, {.kind = CodecKind::int8, .group = 7}), std::invalid_argument, "group is 7");
    CHECK_THROWS(attempt({3}, {.kind = CodecKind::topk, .keep = 0}), std::invalid_argument, "keep is 0.0");
    std::array<std::byte, 59> small;
    const std::array<std::int64_t, 1> shape = {3};
    CHECK_THROWS(compress_into(small, data, DType::float32, shape, {}), std::invalid_argument,
                 "the buffer has 59 bytes, the frame may need 60");
    CHECK_THROWS(decompress_into(small, attempt({3}, {})), std::invalid_argument,
                 "the buffer has 59 bytes, the array has 12");
}

void test_known_dtype_and_shape() {
    const auto frame = encode({1, 2, 3}, {3}, "raw");
    const std::array<std::int64_t, 1> shape = {3};
    const std::array<std::int64_t, 2> matrix = {1, 3};
    std::vector<std::byte> data(12);
    decompress_into(data, DType::float32, shape, frame);
    CHECK(data == decompress(frame).data);
    CHECK_THROWS(decompress_into(data, DType::float32, matrix, frame), std::invalid_argument,
                 "the frame holds float32 [3], not float32 [1, 3]");
    CHECK_THROWS(decompress_into(data, DType::bfloat16, shape, frame), std::invalid_argument,
                 "the frame holds float32 [3], not bfloat16 [3]");
    CHECK_THROWS(decompress_into(std::span(data).first(11), DType::float32, shape, frame),
                 std::invalid_argument, "the buffer has 11 bytes, the array has 12");
}

void test_overlapping_memory() {
    // Regression: the frame was written over values that were still to be read, under a checksum that fits.
    std::vector<std::byte> memory(256);
    const std::array<std::int64_t, 1> shape = {16};
    const auto whole = std::span(memory);
    for (const std::size_t at : {0U, 63U, 111U})
        CHECK_THROWS(compress_into(whole.first(120), whole.subspan(at, 64), DType::float32, shape, {}),
                     std::invalid_argument, "the array and the buffer of its frame overlap in memory");
    CHECK(compress_into(whole, whole.subspan(112, 64), DType::float32, shape, {}) == 112);
    const auto frame = whole.first(112);
    for (const std::size_t at : {0U, 48U, 111U})
        CHECK_THROWS(decompress_into(whole.subspan(at, 64), frame), std::invalid_argument,
                     "the frame and the buffer of its array overlap in memory");
    decompress_into(whole.subspan(112, 64), frame);
}

void test_unaligned_memory() {
    const std::vector<float> x = normals(200, 1);
    std::vector<std::byte> shifted(801);
    std::memcpy(shifted.data() + 1, x.data(), 800);
    const std::array<std::int64_t, 1> shape = {200};
    for (const char* codec : {"raw", "bf16", "int8", "int4", "topk"}) {
        const auto frame = compress(std::span(shifted).subspan(1), DType::float32, shape, parse_codec(codec));
        CHECK(frame == encode(x, {200}, codec));
        std::vector<std::byte> moved(frame.size() + 1);
        std::copy(frame.begin(), frame.end(), moved.begin() + 1);
        CHECK(decompress(std::span(moved).subspan(1)).data == decompress(frame).data);
    }
}

// Large enough for many slices: rows of several groups, rows with a short last group, one long row.
void test_threads() {
    for (const std::vector<std::int64_t>& shape :
         {std::vector<std::int64_t>{61, 640}, {41, 1003}, {1, 40003}, {40003, 1}, {3, 14001}}) {
        const std::vector<float> x = normals(static_cast<std::size_t>(shape[0] * shape[1]), 2);
        const std::span<const std::byte> data = std::as_bytes(std::span(x));
        for (const char* name : {"raw", "bf16", "int8", "int4", "int8:8", "int4:24", "topk"}) {
            const Codec codec = parse_codec(name);
            const std::vector<std::byte> frame = compress(data, DType::float32, shape, codec);
            const std::vector<std::byte> decoded = decompress(frame).data;
            for (const int threads : {2, 3, 8}) {
                CHECK(compress(data, DType::float32, shape, codec, threads) == frame);
                CHECK(decompress(frame, {}, threads).data == decoded);
            }
            std::vector<std::byte> damaged = frame;
            for (const std::size_t at : {std::size_t{60}, frame.size() / 2, frame.size() - 1}) {
                damaged[at] ^= std::byte{0x10};
                for (const int threads : {1, 2})
                    CHECK_THROWS(decompress(damaged, {}, threads), CorruptFrameError, "is damaged");
                damaged[at] = frame[at];
            }
        }
    }
}

void test_refused_threads() {
    const std::vector<float> x(4);
    const std::array<std::int64_t, 1> shape = {4};
    const auto frame = encode(x, {4}, "int8");
    for (const int threads : {0, -1, 257}) {
        CHECK_THROWS(compress(std::as_bytes(std::span(x)), DType::float32, shape, {}, threads),
                     std::invalid_argument, "it must be from 1 to 256");
        CHECK_THROWS(decompress(frame, {}, threads), std::invalid_argument, "it must be from 1 to 256");
    }
    std::vector<float> bad = normals(300000, 1);
    bad[150001] = infinite;
    const std::array<std::int64_t, 2> wide = {3000, 100};
    CHECK_THROWS(compress(std::as_bytes(std::span(bad)), DType::float32, wide, {CodecKind::int8}, 3),
                 std::invalid_argument, "element 150001 is inf");
}

void test_instruction_sets() {
    const std::vector<std::string> names = isas();
    CHECK(!names.empty() && names.front() == "scalar");
    CHECK_THROWS(set_isa("mmx"), std::invalid_argument,
                 "isa is \"mmx\"; this processor and build have scalar");
}

// A stop at any check ends the call, on every thread; a function that never requests one changes nothing.
template <class Call>
void check_stops(Call call) {
    for (const int threads : {1, 3}) {
        std::atomic<int> checks = 0;
        call(Execution(threads, [&] { return ++checks, false; }));
        CHECK(checks > 2);
        for (const int last : {0, checks / 2, checks - 1}) {
            std::atomic<int> made = 0;
            CHECK_THROWS(call(Execution(threads, [&] { return made++ >= last; })), StoppedError,
                         "was stopped");
        }
    }
}

void test_stops() {
    const std::vector<std::int64_t> shape{4096, 256};
    std::vector<float> values(4096 * 256);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(i * 2654435761U % 8191) - 4095;
    const auto data = std::as_bytes(std::span(values));
    std::vector<std::byte> out(data.size());
    CalibratedParameters parameters;
    parameters.key = {.codebook = 1, .cut = 0, .level = 0};
    parameters.step.assign(256, 100.0F);
    const CalibratedCodec calibrated(parameters);
    for (const char* name : {"raw", "bf16", "int8", "int4", "topk", "topk:0.01", "lossless_bf16"}) {
        const Codec codec = parse_codec(name);
        const auto frame = compress(data, DType::float32, shape, codec);
        check_stops([&](const Execution& execution) {
            CHECK(compress(data, DType::float32, shape, codec, execution) == frame);
        });
        check_stops([&](const Execution& execution) { decompress_into(out, frame, {}, execution); });
    }
    const auto frame = compress(data, DType::float32, shape, calibrated);
    check_stops([&](const Execution& execution) {
        CHECK(compress(data, DType::float32, shape, calibrated, execution) == frame);
    });
    check_stops([&](const Execution& execution) { decompress_into(out, frame, calibrated, {}, execution); });
}

}  // namespace

int main() {
    test_stops();
    test_parse();
    test_instruction_sets();
    for (const std::string& name : isas()) {
        set_isa(name);
        CHECK(isa() == name);
        test_exact_codecs();
        test_groups();
        test_topk();
        test_topk_against_sorting();
        test_topk_of_rows_that_differ();
        test_shapes();
        test_float16_stays_finite();
        test_refused_input();
        test_known_dtype_and_shape();
        test_overlapping_memory();
        test_unaligned_memory();
        test_threads();
    }
    test_refused_threads();
    return failures;
}
