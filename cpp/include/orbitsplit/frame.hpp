// A frame: one encoded activation in bytes, self-describing, little-endian, protected by a CRC-32C.
//
// This file covers the header of a frame; docs/internals/frame_format.md specifies the byte layout. codec.hpp encodes and
// decodes the payload. A frame does not protect against forgery: a CRC detects damage, not malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "orbitsplit/export.hpp"

namespace orbitsplit {

// The values are part of the wire format and never change.
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

// The parameters that a calibrated frame needs: those of a level at a cut of the codebook with this identity.
struct CodebookKey {
    std::uint64_t codebook = 0;  // 0: none
    std::uint16_t cut = 0;
    std::uint16_t level = 0;

    bool operator==(const CodebookKey&) const = default;
};

inline constexpr std::size_t max_rank = 8;

ORBITSPLIT_API std::size_t item_bytes(DType dtype);

// The largest array that a frame of this size may hold unless its reader sets a limit: 16 MiB and 8192 bytes for each
// byte of the frame, at most 1 GiB. Codecs that store every element expand by a factor of 8 at most and the entropy
// coder by less than 5700, but topk stores nothing of a row beyond its last value.
ORBITSPLIT_API std::uint64_t default_max_bytes(std::size_t frame_bytes);

// What a reader is willing to allocate for a frame.
struct Limits {
    std::optional<std::uint64_t> max_bytes{};  // of the decoded array; none: default_max_bytes()
};

struct ORBITSPLIT_API FrameInfo {
    CodecKind codec;
    DType dtype;
    bool index_gaps;  // topk: kept positions are a list of gaps; else a bitmap
    // int8, int4: elements of a group; topk: values kept per row; calibrated: escapes of the last stream; else 0.
    std::uint32_t parameter;
    std::vector<std::int64_t> shape;
    std::uint64_t payload_bytes;
    CodebookKey key{};  // calibrated

    std::uint64_t elements() const;
    std::uint64_t data_bytes() const;  // of the decoded array
    std::size_t header_bytes() const;
};

// Parses and validates the header. The payload is not read, so the checksum is not verified. Throws
// CorruptFrameError, also for an array beyond the limits.
ORBITSPLIT_API FrameInfo inspect(std::span<const std::byte> frame, const Limits& limits = {});

// CRC-32C (Castagnoli), the checksum of iSCSI and ext4: crc32c("123456789") = 0xE3069283.
// `before` is the checksum of the preceding bytes, of which these are the continuation.
ORBITSPLIT_API std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0);

}  // namespace orbitsplit
