// Scratch memory for encoding and decoding the streams of a calibrated frame.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "codec/calibrated/calibrated.hpp"
#include "codec/calibrated/calibrated_rows.hpp"
#include "codec/entropy/stream.hpp"

namespace orbitsplit::calibrated {

// Memory reused from stream to stream. Small sizes, such as those of a decode step, are on the stack and allocate
// nothing.
class Scratch {
  public:
    explicit Scratch(std::size_t bytes) : next_(near_) {
        if (bytes <= sizeof near_) return;
        far_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
        next_ = far_.get();
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // Rounded up so that kernels may read and write some bytes beyond the end.
    static std::size_t padded(std::size_t bytes) { return (bytes + 127) / 64 * 64; }

    template <class T>
    T* take(std::size_t count) {
        auto* taken = reinterpret_cast<T*>(next_);
        next_ += padded(count * sizeof(T));
        return taken;
    }

  private:
    alignas(64) std::byte near_[std::size_t{96} << 10];
    std::unique_ptr<std::byte[]> far_;
    std::byte* next_;
};

inline std::size_t group_codes(layout::Rows largest) {
    return std::min(largest.count, stream::group_rows) * largest.length;
}

// Bytes for streams of at most this size: numbers to transform, and the codes of a group in `copies` buffers.
inline std::size_t scratch_bytes(const Prepared& codec, DType dtype, layout::Rows largest,
                                 std::size_t copies) {
    const std::size_t floats = Scratch::padded(sizeof(float) * scratch_floats(codec, dtype, largest));
    return floats + (codec.tables ? copies * Scratch::padded(group_codes(largest)) : 0);
}

}  // namespace orbitsplit::calibrated
