// What every encoder checks of its array and its buffers. All throw std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "orbitsplit/frame.hpp"

namespace orbitsplit::encoding {

// What a frame of this array declares; parameter, payload and key are still to be filled in.
FrameInfo declare(CodecKind codec, DType dtype, std::span<const std::int64_t> shape);

// The array has the bytes of its shape, the buffer those of the frame at its bound.
void check_buffers(const FrameInfo& info, std::size_t data_bytes, std::size_t buffer_bytes);

// An array of a frame has the bytes of its shape (has this dtype and shape).
void check_array(const FrameInfo& info, std::size_t data_bytes);
void check_array(const FrameInfo& info, DType dtype, std::span<const std::int64_t> shape);

// Throws if an element is NaN or infinite; the message names the first one.
void refuse_non_finite(const std::byte* data, const FrameInfo& info, std::string_view codec);

}  // namespace orbitsplit::encoding
