// Encoder and Decoder: codecs for many arrays of one dtype and shape, as in decode steps. All memory is allocated when one
// is made: a call allocates nothing, whatever the codec, on one thread or several (whose threads start when the first
// object that uses them is made). An exception allocates its message.
//
// Frames and arrays are in memory of the caller. An object is for one thread at a time: a call during another call of
// the same object throws BusyError and does nothing else. Frames are those of compress(), and either side may use the other
// interface.
//
// For arrays whose shape varies, use compress() and decompress() of codec.hpp and calibrated.hpp. The layers of a model's
// decoder are in decoder.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"
#include "orbitsplit/error.hpp"
#include "orbitsplit/export.hpp"
#include "orbitsplit/frame.hpp"

namespace orbitsplit {

// An object that was moved from can only be assigned to or destroyed.
class ORBITSPLIT_API Encoder {
  public:
    // Large arrays are encoded on up to `threads` threads. A calibrated codec must exist as long as the encoder; it may be
    // moved. Throws std::invalid_argument for an invalid codec, shape or number of threads.
    Encoder(DType dtype, std::span<const std::int64_t> shape, const Codec& codec, int threads = 1);
    Encoder(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec, int threads = 1);
    ~Encoder();
    Encoder(Encoder&&) noexcept;
    Encoder& operator=(Encoder&&) noexcept;

    // Size of a frame in bytes; exact, except for topk, lossless_bf16 and calibrated codecs, where it is an upper bound.
    std::uint64_t frame_bytes() const;
    // Of an array.
    std::uint64_t data_bytes() const;

    // Encodes an array into at least frame_bytes() bytes that do not overlap it and returns the size of the frame. Throws
    // std::invalid_argument for memory of another size and for values that the codec cannot represent, StoppedError as
    // Execution describes it.
    std::size_t encode(std::span<std::byte> frame, std::span<const std::byte> data,
                       const std::function<bool()>& stop_requested = {});

  private:
    struct State;
    std::unique_ptr<State> state_;
};

// An object that was moved from can only be assigned to or destroyed.
class ORBITSPLIT_API Decoder {
  public:
    // Decodes frames of all fixed codecs, and calibrated frames of these codecs, which must exist as long as the decoder.
    // Large arrays are decoded on up to `threads` threads. Throws std::invalid_argument for an invalid shape or number of
    // threads.
    Decoder(DType dtype, std::span<const std::int64_t> shape, int threads = 1);
    Decoder(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec, int threads = 1);
    Decoder(DType dtype, std::span<const std::int64_t> shape, std::span<const CalibratedCodec* const> codecs,
            int threads = 1);
    ~Decoder();
    Decoder(Decoder&&) noexcept;
    Decoder& operator=(Decoder&&) noexcept;

    // Of an array.
    std::uint64_t data_bytes() const;

    // Decodes untrusted bytes into exactly data_bytes() bytes that do not overlap them. Throws CorruptFrameError for
    // anything that is not a valid frame or needs another codec, std::invalid_argument for a frame of another dtype or
    // shape, StoppedError as Execution describes it. After an error the contents of the array are unspecified.
    void decode(std::span<std::byte> data, std::span<const std::byte> frame,
                const std::function<bool()>& stop_requested = {});

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace orbitsplit
