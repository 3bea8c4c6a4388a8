// Encoding and decoding with a header that exists and working memory of the caller: what compress_into() and
// decompress_into() do once, and Encoder and Decoder again and again without an allocation.
#pragma once

#include <cstddef>
#include <span>

#include "codec/calibrated/calibrated.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/frame.hpp"
#include "support/workspace.hpp"

namespace orbitsplit::in_place {

// A calibrated codec is its prepared form, whose address stays when the codec is moved.

// The header of a frame, with the payload size at its bound. Throws std::invalid_argument.
FrameInfo declare(DType dtype, std::span<const std::int64_t> shape, const Codec& codec);
FrameInfo declare(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec);

// The memory that a call takes: to encode arrays of a declared header, to decode frames of fixed codecs (of any of them)
// and of a calibrated codec.
WorkspaceSize encode_memory(const FrameInfo& declared, int threads);
WorkspaceSize encode_memory(const FrameInfo& declared, const calibrated::Prepared& codec, int threads);
WorkspaceSize decode_memory(DType dtype, std::span<const std::int64_t> shape, int threads);
WorkspaceSize decode_memory(DType dtype, std::span<const std::int64_t> shape,
                            const calibrated::Prepared& codec);

// Encodes an array of the declared header, which then is the one of the frame. Returns the size of the frame.
std::size_t encode(std::span<std::byte> frame, std::span<const std::byte> data, FrameInfo& info,
                   const Execution& execution, Workspace& workspace);
std::size_t encode(std::span<std::byte> frame, std::span<const std::byte> data, FrameInfo& info,
                   const calibrated::Prepared& codec, const Execution& execution, Workspace& workspace);

// Decodes a frame whose header was read. The second decodes frames of fixed codecs too, and calibrated ones that
// check_codec() accepts.
void decode(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> frame,
            const Execution& execution, Workspace& workspace);
void decode(std::span<std::byte> data, const FrameInfo& info, std::span<const std::byte> frame,
            const calibrated::Prepared& codec, const Execution& execution, Workspace& workspace);

// Throws CorruptFrameError for a calibrated frame that was encoded with another codec.
void check_codec(const FrameInfo& info, const calibrated::Prepared& codec);

}  // namespace orbitsplit::in_place
