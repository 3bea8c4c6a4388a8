// The payload of a calibrated frame: rows of an array to streams and back.
#pragma once

#include <cstddef>
#include <span>

#include "codec/calibrated/calibrated.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit::calibrated {

// Returns the size of the payload and sets the parameter that its frame declares. Throws std::invalid_argument for
// numbers that no frame can hold.
std::size_t encode_payload(const Prepared& codec, const std::byte* data, FrameInfo& info, std::byte* payload,
                           const Execution& execution);

// Throws CorruptFrameError.
void decode_payload(const Prepared& codec, const FrameInfo& info, std::span<const std::byte> payload,
                    std::byte* data, const Execution& execution);

}  // namespace orbitsplit::calibrated
