// Codecs whose payload has a known place for each part of the array (raw, bf16, int8, int4): encoded and decoded
// slice by slice, each checksummed while it is in the cache, on one thread or several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "orbitsplit/frame.hpp"

namespace orbitsplit::slices {

bool takes(CodecKind codec);

// Both return the checksum of the frame, from that of its header on.

// Nothing: a value was not finite and the codec has no place for it.
std::optional<std::uint32_t> encode(const std::byte* data, const FrameInfo& info, std::byte* payload,
                                    std::uint32_t header_checksum, int threads);

struct Outcome {
    std::uint32_t checksum;
    bool is_valid;  // else a scale is not a positive, normal, finite number
};

Outcome decode(std::byte* data, const FrameInfo& info, const std::byte* payload,
               std::uint32_t header_checksum, int threads);

}  // namespace orbitsplit::slices
