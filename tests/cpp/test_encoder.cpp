// Encoder and Decoder: the frames of compress(), no allocation in a call (counted), and one call at a time.
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "counted_allocations.hpp"
#include "orbitsplit/encoder.hpp"

using namespace orbitsplit;

namespace {

using Bytes = std::vector<std::byte>;
using Shape = std::vector<std::int64_t>;

constexpr DType dtypes[] = {DType::float32, DType::float16, DType::bfloat16};

std::size_t elements_of(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
    return count;
}

// Finite elements of any dtype whose exponents vary as in activations, some of them large enough to escape; or with
// exponents that no entropy coder shortens.
Bytes array_of(DType dtype, const Shape& shape, bool is_compressible, unsigned seed) {
    std::mt19937 random(seed);
    Bytes data(elements_of(shape) * item_bytes(dtype));
    for (std::size_t i = 0; i < data.size(); ++i) {
        const bool ends = i % item_bytes(dtype) == item_bytes(dtype) - 1;
        const unsigned top = is_compressible ? 0x38U + random() % 8 : 0x20U + random() % 0x40;
        data[i] = static_cast<std::byte>(ends ? (random() & 0x80) | top : random() >> 8);
    }
    return data;
}

CalibratedParameters plain(std::size_t width, std::uint16_t level) {
    CalibratedParameters p;
    p.key = {.codebook = 9, .cut = 5, .level = level};
    for (std::size_t c = 0; c < width; ++c) p.step.push_back(c % 7 == 3 ? 0x1p-9F : 0.0625F);
    return p;
}

CalibratedParameters with_tables(CalibratedParameters p, std::size_t tables) {
    p.tables.resize(tables);
    for (std::size_t t = 0; t < tables; ++t)
        for (int code = -6; code <= 6; ++code)
            p.tables[t][static_cast<std::uint8_t>(code)] = static_cast<std::uint8_t>(18 - t);
    for (std::size_t c = 0; c < p.step.size(); ++c)
        p.table_of_channel.push_back(static_cast<std::uint8_t>(c % tables));
    return p;
}

// One of each kind: with and without tables, and with each transform.
std::vector<CalibratedCodec> calibrated_codecs(std::size_t width) {
    std::vector<CalibratedCodec> codecs;
    codecs.emplace_back(plain(width, 0));
    codecs.emplace_back(with_tables(plain(width, 1), 1));
    codecs.emplace_back(with_tables(plain(width, 2), 3));
    CalibratedParameters hadamard = with_tables(plain(width, 3), 2);
    hadamard.hadamard = 8;
    hadamard.shift.assign(width, 0.25F);
    hadamard.scale.assign(width, 2);
    codecs.emplace_back(std::move(hadamard));
    CalibratedParameters matrix = with_tables(plain(width, 4), 1);
    matrix.matrix.assign(width * width, 0);
    for (std::size_t c = 0; c < width; ++c) matrix.matrix[c * width + (c + 1) % width] = 1;
    codecs.emplace_back(matrix);
    matrix.key.level = 5;
    matrix.inverse = matrix.matrix;
    for (std::size_t c = 0; c < width; ++c)
        for (std::size_t k = 0; k < width; ++k) matrix.inverse[c * width + k] = matrix.matrix[k * width + c];
    codecs.emplace_back(matrix);
    return codecs;
}

// Both directions of `encoder` and `decoder` on some arrays: equal to the functions that allocate, without an allocation.
void check_calls(Encoder& encoder, Decoder& decoder, std::span<const Bytes> arrays,
                 std::span<const Bytes> expected_frames, std::span<const Bytes> expected_arrays) {
    Bytes frame(encoder.frame_bytes());
    Bytes decoded(decoder.data_bytes());
    for (std::size_t k = 0; k < arrays.size(); ++k) {
        const std::size_t before = counted::allocations;
        const std::size_t size = encoder.encode(frame, arrays[k]);
        decoder.decode(decoded, std::span(frame).first(size));
        CHECK(counted::allocations == before);
        CHECK(std::ranges::equal(std::span(frame).first(size), expected_frames[k]));
        CHECK(decoded == expected_arrays[k]);
        // A frame in memory that ends with it: readers cannot read beyond the end.
        const Bytes exact(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(size));
        const std::size_t again = counted::allocations;
        decoder.decode(decoded, exact);
        CHECK(counted::allocations == again);
        CHECK(decoded == expected_arrays[k]);
    }
}

// Long arrays are checked in one type: what is sliced does not depend on it, and under emulation they take minutes.
bool is_checked(DType dtype, const Shape& shape) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    return count < 100'000 || dtype == DType::bfloat16;
}

// What all codecs of a shape are checked with.
std::array<Bytes, 2> arrays_of(DType dtype, const Shape& shape) {
    return {array_of(dtype, shape, true, 7), array_of(dtype, shape, false, 7)};
}

template <class AnyCodec, class Decompress>
void check_codec(const AnyCodec& codec, DType dtype, const Shape& shape, std::span<const Bytes> arrays,
                 Decoder& decoder, int threads, Decompress decompressed) {
    std::vector<Bytes> frames;
    std::vector<Bytes> decoded;
    for (const Bytes& array : arrays) {
        frames.push_back(compress(array, dtype, shape, codec));
        decoded.push_back(decompressed(frames.back()));
    }
    Encoder encoder(dtype, shape, codec, threads);
    CHECK(encoder.frame_bytes() == frame_bytes(dtype, shape, codec));
    CHECK(encoder.data_bytes() == arrays[0].size() && decoder.data_bytes() == arrays[0].size());
    check_calls(encoder, decoder, arrays, frames, decoded);
}

// Rows of a decode step, several slices, several streams of lossless_bf16 with a short last one, an empty array.
const Shape fixed_shapes[] = {{1, 640}, {5, 7, 9}, {150, 901}, {1, 65536}, {65537}, {0, 640}, {}};

void test_fixed_codecs(int threads) {
    constexpr const char* names[] = {"raw",  "bf16", "int8",      "int8:24",
                                     "int4", "topk", "topk:0.01", "lossless_bf16"};
    for (const DType dtype : dtypes)
        for (const Shape& shape : fixed_shapes) {
            if (!is_checked(dtype, shape)) continue;
            const auto arrays = arrays_of(dtype, shape);
            Decoder decoder(dtype, shape, threads);
            for (const char* name : names)
                check_codec(parse_codec(name), dtype, shape, arrays, decoder, threads,
                            [](const Bytes& frame) { return decompress(frame).data; });
        }
}

void test_calibrated_codecs(int threads) {
    constexpr std::size_t width = 104;
    const std::vector<CalibratedCodec> codecs = calibrated_codecs(width);
    std::vector<const CalibratedCodec*> all;
    for (const CalibratedCodec& codec : codecs) all.push_back(&codec);
    for (const DType dtype : dtypes)
        // One row, part of a group, groups, and 5 streams with a short last one.
        for (const std::int64_t rows : {1, 24, 130, 1030, 0}) {
            const Shape shape{rows, width};
            if (!is_checked(dtype, shape)) continue;
            const auto arrays = arrays_of(dtype, shape);
            Decoder of_all(dtype, shape, all, threads);
            for (const CalibratedCodec& codec : codecs) {
                const auto decompressed = [&](const Bytes& frame) { return decompress(frame, codec).data; };
                check_codec(codec, dtype, shape, arrays, of_all, threads, decompressed);
                if (rows != 24) continue;
                Decoder of_one(dtype, shape, codec, threads);
                check_codec(codec, dtype, shape, arrays, of_one, threads, decompressed);
            }
            check_codec(parse_codec("lossless_bf16"), dtype, shape, arrays, of_all, threads,
                        [](const Bytes& frame) { return decompress(frame).data; });
        }
}

void test_every_instruction_set() {
#if !defined(__SANITIZE_THREAD__)  // one thread has no races, and takes a minute under their sanitizer
    const std::string before(isa());
    for (const std::string& name : isas()) {
        set_isa(name);
        test_fixed_codecs(1);
        test_calibrated_codecs(1);
    }
    set_isa(before);
#endif
    test_fixed_codecs(3);
    test_calibrated_codecs(3);
}

// The codec's numbers stay where they are when the codec itself is moved.
void test_codec_may_be_moved() {
    const Shape shape{3, 136};
    std::vector<CalibratedCodec> codecs = calibrated_codecs(136);
    Encoder encoder(DType::float32, shape, codecs[2]);
    Decoder decoder(DType::float32, shape, codecs[2]);
    const CalibratedCodec moved = std::move(codecs[2]);
    Encoder moved_encoder = std::move(encoder);
    const Bytes array = array_of(DType::float32, shape, true, 3);
    Bytes frame(moved_encoder.frame_bytes());
    frame.resize(moved_encoder.encode(frame, array));
    CHECK(frame == compress(array, DType::float32, shape, moved));
    Bytes decoded(array.size());
    decoder.decode(decoded, frame);
    CHECK(decoded == decompress(frame, moved).data);
}

void test_refusals() {
    const Shape shape{4, 136};
    const Codec raw = parse_codec("raw");
    CHECK_THROWS(Encoder(DType::float32, shape, raw, 0), std::invalid_argument,
                 "threads is 0, it must be from 1");
    CHECK_THROWS(Decoder(DType::float32, shape, 257), std::invalid_argument, "threads is 257");
    const Shape negative{-1, 136};
    CHECK_THROWS(Encoder(DType::float32, negative, raw), std::invalid_argument, "negative extent");
    CHECK_THROWS(Decoder(DType::float32, negative), std::invalid_argument, "negative extent");
    const std::vector<CalibratedCodec> codecs = calibrated_codecs(136);
    const Shape narrow{4, 8};
    CHECK_THROWS(Encoder(DType::float32, narrow, codecs[0]), std::invalid_argument,
                 "rows have 8 elements, the codec has 136 channels");
    Encoder encoder(DType::float32, shape, raw);
    const Bytes array = array_of(DType::float32, shape, true, 1);
    Bytes frame(encoder.frame_bytes());
    CHECK_THROWS(encoder.encode(std::span(frame).first(9), array), std::invalid_argument,
                 "the buffer has 9 bytes");
    CHECK_THROWS(encoder.encode(frame, std::span(array).first(9)), std::invalid_argument, "data has 9 bytes");
    CHECK(encoder.encode(frame, array) == frame.size());

    Decoder decoder(DType::float16, shape);
    Bytes decoded(decoder.data_bytes());
    CHECK_THROWS(decoder.decode(decoded, frame), std::invalid_argument,
                 "the frame holds float32 [4, 136], not float16 [4, 136]");
    const CalibratedCodec* const some[] = {&codecs[0], &codecs[1]};
    Decoder of_some(DType::float32, shape, some);
    const Bytes other = compress(array, DType::float32, shape, codecs[2]);
    decoded.resize(of_some.data_bytes());
    CHECK_THROWS(of_some.decode(decoded, other), CorruptFrameError,
                 "frame needs codebook 9, cut 5, level 2, none of the 2 codecs of this decoder");
    CHECK_THROWS(Decoder(DType::float32, shape).decode(decoded, other), CorruptFrameError,
                 "frame needs codebook 9, cut 5, level 2, none was given");
}

// A corrupt frame throws, whose message is allocated; the calls after it allocate nothing.
void test_corrupt_frames_leave_nothing_behind() {
    const Shape shape{600, 136};
    const std::vector<CalibratedCodec> codecs = calibrated_codecs(136);
    Decoder decoder(DType::float32, shape, codecs[1]);
    const Bytes array = array_of(DType::float32, shape, true, 5);
    const Bytes good = compress(array, DType::float32, shape, codecs[1]);
    Bytes decoded(decoder.data_bytes());
    std::mt19937 random(1);
    for (int trial = 0; trial < 200; ++trial) {
        Bytes bad = good;
        if (trial % 2 == 0) bad.resize(random() % good.size());
        if (trial % 2 == 1) bad[random() % bad.size()] ^= std::byte{1};
        CHECK_THROWS(decoder.decode(decoded, bad), std::exception, "frame");
        const std::size_t before = counted::allocations;
        decoder.decode(decoded, good);
        CHECK(counted::allocations == before);
    }
    CHECK(decoded == decompress(good, codecs[1]).data);
}

// A call from within a call, and one from another thread meanwhile: refused, and the first one completes.
void test_one_call_at_a_time() {
    const Shape shape{64, 4096};
    const Bytes array = array_of(DType::float32, shape, true, 1);
    Encoder encoder(DType::float32, shape, parse_codec("int8"));
    Decoder decoder(DType::float32, shape);
    Bytes frame(encoder.frame_bytes());
    Bytes second(encoder.frame_bytes());
    Bytes decoded(array.size());
    Bytes other(array.size());
    int refused = 0;
    const auto refuses = [&](const auto& call) {
        const auto counted_call = [&] {
            try {
                call();
            } catch (const BusyError& error) {
                refused += std::string(error.what()).find("is in use by another call") != std::string::npos;
            }
        };
        counted_call();
        std::thread(counted_call).join();
        return false;
    };
    encoder.encode(frame, array, [&] { return refuses([&] { encoder.encode(second, array); }); });
    CHECK(refused > 0 && refused % 2 == 0);
    CHECK(frame == compress(array, DType::float32, shape, parse_codec("int8")));
    const int before = refused;
    decoder.decode(decoded, frame, [&] { return refuses([&] { decoder.decode(other, frame); }); });
    CHECK(refused > before);
    CHECK(decoded == decompress(frame).data);
    // And each is free again after a call that was stopped.
    CHECK_THROWS(encoder.encode(frame, array, [] { return true; }), StoppedError, "stopped");
    CHECK(encoder.encode(frame, array) == frame.size());
}

}  // namespace

int main() {
    test_every_instruction_set();
    test_codec_may_be_moved();
    test_refusals();
    test_corrupt_frames_leave_nothing_behind();
    test_one_call_at_a_time();
    return failures;
}
