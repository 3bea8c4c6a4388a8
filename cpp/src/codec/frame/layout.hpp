// The byte layout of a frame (docs/internals/frame_format.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "codec/kernels/rows.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit::layout {

inline constexpr std::size_t fixed_header_bytes = 40;
inline constexpr std::uint32_t smallest_group = 8;
inline constexpr std::uint32_t largest_group = 65536;

// Where the fields of a header begin, in bytes.
namespace offsets {

inline constexpr std::size_t version_at = 4;
inline constexpr std::size_t codec_at = 5;
inline constexpr std::size_t dtype_at = 6;
inline constexpr std::size_t rank_at = 7;
inline constexpr std::size_t flags_at = 8;
inline constexpr std::size_t parameter_at = 12;
inline constexpr std::size_t codebook_at = 16;
inline constexpr std::size_t payload_bytes_at = 24;
inline constexpr std::size_t cut_at = 32;
inline constexpr std::size_t level_at = 34;
inline constexpr std::size_t checksum_at = 36;
inline constexpr std::size_t shape_at = fixed_header_bytes;

}  // namespace offsets

Rows rows_of(std::span<const std::int64_t> shape);

// Number of elements; nothing if an axis is negative or the non-empty axes make 2^63 bytes or more.
std::optional<std::uint64_t> count_elements(std::span<const std::int64_t> shape, DType dtype);

bool is_group(std::uint32_t group);

// Groups of a row; the last one may be short.
inline std::size_t groups_per_row(Rows rows, std::size_t group) { return (rows.length + group - 1) / group; }
inline std::size_t packed_row_bytes(Rows rows) { return (rows.length + 1) / 2; }
inline std::size_t bitmap_row_bytes(Rows rows) { return (rows.length + 7) / 8; }

// Payload bytes of a frame with this header; an upper bound if kept positions are gaps.
std::uint64_t payload_bound(const FrameInfo& info);

// inspect() into a header whose shape keeps its memory: one with room for max_rank axes allocates nothing.
void read_header(std::span<const std::byte> frame, const Limits& limits, FrameInfo& info);

void write_header(std::span<std::byte> frame, const FrameInfo& info);

// "codebook 123, cut 5, level 2"
std::string describe(const CodebookKey& key);

// The checksum of the header with the checksum field zero; that of the frame continues from it.
std::uint32_t header_checksum(std::span<const std::byte> frame);

// Writes (verifies) the frame's checksum, which covers everything but itself.
void seal(std::span<std::byte> frame, std::uint32_t checksum);
void verify_seal(std::span<const std::byte> frame, std::uint32_t checksum);

// The same, computing the checksum.
void seal(std::span<std::byte> frame, const Execution& execution);
void verify_seal(std::span<const std::byte> frame, const Execution& execution);

}  // namespace orbitsplit::layout
