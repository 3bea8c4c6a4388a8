// The payload of a calibrated frame: rows of an array to streams and back.
#pragma once

#include <cstddef>
#include <span>

#include "codec/calibrated/calibrated.hpp"
#include "codec/kernels/rows.hpp"
#include "orbitsplit/execution.hpp"
#include "orbitsplit/frame.hpp"
#include "support/workspace.hpp"

namespace orbitsplit::calibrated {

// What encoding and decoding arrays of this dtype and these rows take of a workspace.
WorkspaceSize encode_memory(const Prepared& codec, DType dtype, layout::Rows rows, int threads);
WorkspaceSize decode_memory(const Prepared& codec, DType dtype, layout::Rows rows);

// Returns the size of the payload and sets the parameter that its frame declares. Throws std::invalid_argument for
// numbers that no frame can hold.
std::size_t encode_payload(const Prepared& codec, const std::byte* data, FrameInfo& info, std::byte* payload,
                           const Execution& execution, Workspace& workspace);

// Throws CorruptFrameError.
void decode_payload(const Prepared& codec, const FrameInfo& info, std::span<const std::byte> payload,
                    std::byte* data, const Execution& execution, Workspace& workspace);

}  // namespace orbitsplit::calibrated
