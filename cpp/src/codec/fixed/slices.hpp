// Codecs whose payload has a fixed offset for each part of the array (raw, bf16, int8, int4): encoded and decoded slice
// by slice, each checksummed while it is in the cache, on one thread or several.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"
#include "support/workspace.hpp"

namespace orbitsplit::slices {

bool supports(CodecKind codec);

// What both take of the memory on this number of threads.
std::size_t memory_bytes(int threads);

// Both return the checksum of the frame, continued from that of its header.

// Returns nothing if a value is not finite and the codec cannot represent it.
std::optional<std::uint32_t> encode(const std::byte* data, const FrameInfo& info, std::byte* payload,
                                    std::uint32_t header_checksum, const Execution& execution, Arena& memory);

struct Outcome {
    std::uint32_t checksum;
    bool is_valid;  // all scales are positive, normal, finite numbers
};

Outcome decode(std::byte* data, const FrameInfo& info, const std::byte* payload,
               std::uint32_t header_checksum, const Execution& execution, Arena& memory);

}  // namespace orbitsplit::slices
