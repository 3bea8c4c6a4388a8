// Memory that the streams of a calibrated frame need while they are encoded or decoded.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "codec/calibrated/calibrated.hpp"
#include "codec/calibrated/calibrated_rows.hpp"
#include "codec/entropy/stream.hpp"

namespace orbitsplit::calibrated {

// Memory for one stream after another: on the stack where a decode step fits, which then allocates none.
class Scratch {
  public:
    explicit Scratch(std::size_t bytes) : next_(near_) {
        if (bytes <= sizeof near_) return;
        far_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
        next_ = far_.get();
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // Room for the kernels to read and write beyond the end, which they may by some bytes.
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

// What streams of at most this size need: numbers to transform, and codes of a group in so many places.
inline std::size_t scratch_bytes(const CalibratedCodec::Prepared& codec, DType dtype, layout::Rows largest,
                                 std::size_t places) {
    const std::size_t floats = Scratch::padded(sizeof(float) * scratch_floats(codec, dtype, largest));
    return floats + (codec.tables ? places * Scratch::padded(group_codes(largest)) : 0);
}

}  // namespace orbitsplit::calibrated
