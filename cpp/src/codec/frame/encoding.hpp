// Argument checks common to all encoders. All throw std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "orbitsplit/frame.hpp"

namespace orbitsplit::encoding {

// The header of a frame of this array, without parameter, payload size and key.
FrameInfo declare(CodecKind codec, DType dtype, std::span<const std::int64_t> shape);

// The array must have the bytes of its shape, the buffer those of the largest possible frame, and they must not overlap.
void check_buffers(const FrameInfo& info, std::span<const std::byte> data, std::span<const std::byte> buffer);

// The decoded array must have the size of `data`, which must not overlap its frame, or this dtype and shape.
void check_array(const FrameInfo& info, std::span<const std::byte> data, std::span<const std::byte> frame);
void check_array(const FrameInfo& info, DType dtype, std::span<const std::int64_t> shape);

// Throws if an element is NaN or infinite, naming the first one.
void refuse_non_finite(const std::byte* data, const FrameInfo& info, std::string_view codec);

}  // namespace orbitsplit::encoding
