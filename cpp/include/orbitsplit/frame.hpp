// A frame: one encoded activation in bytes, self-describing, little-endian, closed by a CRC32C.
//
// This header says what a frame declares about itself; the bytes are laid out in docs/internals/frame_format.md. What
// the payload means is the business of codec.hpp. A frame is no protection against forgery: a CRC finds
// damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace orbitsplit {

// The values are those of the wire and never change their meaning.
enum class DType : std::uint8_t { float32 = 0, float16 = 1, bfloat16 = 2 };
enum class CodecKind : std::uint8_t {
    raw = 0,
    bf16 = 1,
    int8 = 2,
    int4 = 3,
    topk = 4,
    lossless_bf16 = 5,
    calibrated = 6
};

// Which parameters a calibrated frame needs: those of a level at a cut of the codebook with this identity.
struct CodebookKey {
    std::uint64_t codebook = 0;  // 0: none
    std::uint16_t cut = 0;
    std::uint16_t level = 0;

    bool operator==(const CodebookKey&) const = default;
};

inline constexpr std::size_t max_rank = 8;

std::size_t item_bytes(DType dtype);

// Bounds on what the reader of a frame is willing to allocate.
struct Limits {
    std::uint64_t max_bytes = std::uint64_t{1} << 30;  // of the decoded array
};

struct FrameInfo {
    CodecKind codec;
    DType dtype;
    bool index_gaps;  // topk: kept positions are a list of gaps, else a bitmap
    std::uint32_t
        parameter;  // int8, int4: elements of a group; topk: values kept per row; calibrated: escapes
                    // of the last stream; else 0
    std::vector<std::int64_t> shape;
    std::uint64_t payload_bytes;
    CodebookKey key{};  // calibrated

    std::uint64_t elements() const;
    std::uint64_t data_bytes() const;  // of the decoded array
    std::size_t header_bytes() const;
};

// Reads and checks everything but the payload: it is not touched, so the checksum is not verified.
// Throws CorruptFrameError, also for an array beyond the limits.
FrameInfo inspect(std::span<const std::byte> frame, const Limits& limits = {});

// CRC-32C (Castagnoli), the checksum of iSCSI and ext4: crc32c("123456789") = 0xE3069283.
// `before` is the checksum of the bytes that came before these.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0);

// The checksum of two runs of bytes one after the other, from those of each and the length of the second.
std::uint32_t crc32c_combine(std::uint32_t first, std::uint32_t second, std::uint64_t second_bytes);

}  // namespace orbitsplit
