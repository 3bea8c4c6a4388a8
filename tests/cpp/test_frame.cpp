// Frames: the bytes of the header, the checksum, and what a reader rejects.
#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>

#include "check.hpp"
#include "codec/frame/crc32c.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/frame.hpp"

using namespace orbitsplit;

namespace {

using Bytes = std::vector<std::byte>;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// Bit by bit, directly from the polynomial.
std::uint32_t slow_crc32c(std::span<const std::byte> bytes) {
    std::uint32_t crc = 0xFFFFFFFF;
    for (const std::byte byte : bytes) {
        crc ^= std::to_integer<std::uint32_t>(byte);
        for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78 : crc >> 1;
    }
    return ~crc;
}

template <class T>
Bytes with(Bytes frame, std::size_t at, T value) {
    std::memcpy(frame.data() + at, &value, sizeof value);
    return frame;
}

// A modified frame with a valid checksum, so that the checks behind it are reached.
Bytes sealed(Bytes frame) {
    if (frame.size() < 40) return frame;
    const Bytes blank = with(frame, 36, std::uint32_t{0});
    return with(frame, 36, slow_crc32c(blank));
}

Bytes sample(std::string_view codec) {
    const std::array<float, 12> values = {1, -2, 3, 0.5, -0.25, 7, 0, 0, 9, -1, 2, 4};
    const std::array<std::int64_t, 2> shape = {2, 6};
    return compress(std::as_bytes(std::span(values)), DType::float32, shape, parse_codec(codec));
}

void test_checksum() {
    CHECK(crc32c(bytes_of("")) == 0);
    CHECK(crc32c(bytes_of("123456789")) == 0xE3069283);
    std::mt19937 random(1);
    Bytes bytes(70000);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    const std::array<std::size_t, 9> sizes = {0, 1, 7, 8, 9, 767, 768, 4000, 60000};
    for (const std::size_t size : sizes)
        for (std::size_t offset = 0; offset < 9; ++offset) {
            const auto part = std::span<const std::byte>(bytes).subspan(offset, size);
            const std::uint32_t expected = slow_crc32c(part);
            CHECK(crc32c(part) == expected);
            CHECK(crc32c(part.subspan(size / 3), crc32c(part.first(size / 3))) == expected);
        }
}

void test_combined_checksums() {
    std::mt19937 random(2);
    Bytes bytes(5000);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    const std::span<const std::byte> whole(bytes);
    for (const std::size_t cut : {0U, 1U, 7U, 64U, 1000U, 4095U, 4999U, 5000U})
        CHECK(crc32c_combine(crc32c(whole.first(cut)), crc32c(whole.subspan(cut)), 5000 - cut) ==
              crc32c(whole));
    // 2^40 zero bytes, in two steps and in one.
    const std::uint64_t far = std::uint64_t{1} << 40;
    CHECK(crc32c_combine(crc32c_combine(0x1234, 0, far), 0, 3) == crc32c_combine(0x1234, 0, far + 3));
}

void test_header_bytes() {
    const Bytes frame = sample("int8:32");
    const std::array<unsigned char, 36> expected = {
        'O', 'S', 'P', 'F', 1,  2, 0, 2,  // magic, version, codec, dtype, rank
        0,   0,   0,   0,   32, 0, 0, 0,  // flags, reserved, group
        0,   0,   0,   0,   0,  0, 0, 0,  // codebook
        16,  0,   0,   0,   0,  0, 0, 0,  // payload bytes
        0,   0,   0,   0,                 // reserved
    };
    CHECK(std::memcmp(frame.data(), expected.data(), expected.size()) == 0);
    CHECK(frame == sealed(frame));
    const FrameInfo info = inspect(frame);
    CHECK(info.codec == CodecKind::int8 && info.dtype == DType::float32 && info.parameter == 32);
    CHECK((info.shape == std::vector<std::int64_t>{2, 6}));
    CHECK(info.elements() == 12 && info.data_bytes() == 48 && info.header_bytes() == 56);
    CHECK(info.payload_bytes == 16 && !info.index_gaps);
}

void test_refused_headers() {
    const Bytes frame = sample("int8");
    const auto refuses = [](const Bytes& bytes, const char* text) {
        CHECK_THROWS(decompress(sealed(bytes)), CorruptFrameError, text);
    };
    refuses({}, "frame has 0 bytes, a header needs at least 40");
    refuses(with(frame, 0, 'o'), "frame does not begin with OSPF");
    refuses(with(frame, 4, std::uint8_t{2}), "frame has version 2, this reader knows 1");
    refuses(with(frame, 5, std::uint8_t{7}), "frame has codec id 7, this reader knows 0 to 6");
    refuses(with(frame, 6, std::uint8_t{3}), "frame has dtype id 3, this reader knows 0 to 2");
    refuses(with(frame, 7, std::uint8_t{9}), "frame has rank 9, the limit is 8");
    refuses(Bytes(frame.begin(), frame.begin() + 50), "frame has 50 bytes, its header needs 56");
    refuses(with(frame, 8, std::uint16_t{1}), "frame has flags 1 this reader does not know");
    refuses(with(sample("topk"), 8, std::uint16_t{2}), "frame has flags 2 this reader does not know");
    refuses(with(frame, 10, std::uint16_t{1}), "frame uses reserved header bytes");
    refuses(with(frame, 32, std::uint32_t{1}), "frame uses reserved header bytes");
    refuses(with(frame, 16, std::uint64_t{1}), "frame names a codebook, its codec has none");
    refuses(with(frame, 12, std::uint32_t{12}), "frame has groups of 12, a group is a multiple of 8");
    refuses(with(frame, 12, std::uint32_t{65544}), "frame has groups of 65544");
    refuses(with(sample("raw"), 12, std::uint32_t{1}), "frame has codec parameter 1, its codec has none");
    refuses(with(sample("topk"), 12, std::uint32_t{7}), "frame keeps 7 values of rows of 6");
    refuses(with(sample("topk"), 12, std::uint32_t{0}), "frame keeps 0 values of rows of 6");
    refuses(with(frame, 24, std::uint64_t{17}), "frame declares a payload of 17 bytes, it has 16");
    refuses(with(frame, 40, std::int64_t{-1}), "frame declares a shape of 2^63 bytes or more");
    Bytes trailing = frame;
    trailing.push_back(std::byte{0});
    refuses(trailing, "frame declares a payload of 16 bytes, it has 17");
    refuses(with(trailing, 24, std::uint64_t{17}),
            "frame has a payload of 17 bytes, its shape and codec need 16");
    CHECK_THROWS(decompress(with(frame, 60, std::uint8_t{99})), CorruptFrameError, "frame is damaged");
    // Regression: a damaged frame was reported as one that needs a codebook.
    CHECK_THROWS(inspect(with(frame, 16, std::uint64_t{1})), CorruptFrameError, "frame is damaged");
}

void test_limits() {
    const Bytes frame = sample("topk");
    const Bytes huge = with(frame, 40, std::int64_t{1} << 58);
    const std::uint64_t limit = (std::uint64_t{16} << 20) + 8192 * frame.size();
    CHECK(default_max_bytes(frame.size()) == limit);
    CHECK(default_max_bytes(std::numeric_limits<std::size_t>::max()) == std::uint64_t{1} << 30);
    CHECK_THROWS(inspect(huge), CorruptFrameError,
                 "bytes, the limit is " + std::to_string(limit) + " for a frame of " +
                     std::to_string(frame.size()) + " unless max_bytes is given");
    CHECK_THROWS(inspect(with(huge, 48, std::int64_t{1} << 58)), CorruptFrameError, "2^63 bytes or more");
    // An empty axis does not make the others valid: no array library supports such a shape.
    const Bytes empty = with(with(frame, 40, std::int64_t{0}), 48, std::int64_t{1} << 62);
    CHECK_THROWS(inspect(empty), CorruptFrameError, "2^63 bytes or more");
    CHECK_THROWS(inspect(frame, {.max_bytes = 47}), CorruptFrameError,
                 "frame declares an array of 48 bytes, the limit is 47");
    CHECK(inspect(frame, {.max_bytes = 48}).data_bytes() == 48);
}

void test_refused_payloads() {
    const auto refuses = [](const Bytes& bytes, const char* text) {
        CHECK_THROWS(decompress(sealed(bytes)), CorruptFrameError, text);
    };
    const std::array<std::uint16_t, 6> bad_scales = {0, 0x7F, 0x7F80, 0x7FC0, 0x8000, 0xBF80};
    for (const char* codec : {"int8", "int4"})
        for (const std::uint16_t scale : bad_scales)
            refuses(with(sample(codec), 56, scale),
                    "frame has a scale that is not a positive, normal number");
    // topk keeps 2 of 6: values of both rows, then one byte of bitmap for each.
    const Bytes topk = sample("topk");
    const std::size_t bitmap = 56 + 8;
    for (const std::uint8_t bits : {0x00, 0x01, 0x07, 0xC0, 0x81})
        refuses(with(topk, bitmap, bits), "frame does not place exactly 2 values in each row of 6");
    CHECK(decompress(sealed(with(topk, bitmap, std::uint8_t{0x21}))).data.size() == 48);
}

// Any bytes yield an array or CorruptFrameError. Under sanitizers this also tests every memory access.
void test_mutations() {
    std::mt19937 random(7);
    int arrays = 0;
    for (const char* codec : {"raw", "bf16", "int8", "int4", "topk", "topk:0.05"}) {
        std::vector<std::uint16_t> values(3 * 700);
        for (std::uint16_t& value : values) value = static_cast<std::uint16_t>(random() & 0x3FFF);
        const std::array<std::int64_t, 2> shape = {3, 700};
        const Bytes frame =
            compress(std::as_bytes(std::span(values)), DType::float16, shape, parse_codec(codec));
        for (int trial = 0; trial < 3000; ++trial) {
            Bytes mutant = frame;
            // Mostly in the header, on which the reader's decisions depend.
            for (unsigned change = 0; change <= random() % 3; ++change)
                mutant[random() % (random() % 2 != 0 ? 56 : mutant.size())] =
                    static_cast<std::byte>(random());
            if (random() % 4 == 0) mutant.resize(random() % (mutant.size() + 9));
            try {
                arrays += decompress(sealed(mutant), {.max_bytes = 1 << 20}).data.size() <= 1 << 20;
            } catch (const CorruptFrameError&) {
            }
        }
    }
    CHECK(arrays > 1000);
}

}  // namespace

int main() {
    for (const std::string& name : isas()) {
        set_isa(name);
        test_checksum();
        test_refused_payloads();
        test_mutations();
    }
    test_combined_checksums();
    test_header_bytes();
    test_refused_headers();
    test_limits();
    return failures;
}
