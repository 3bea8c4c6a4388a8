// A calibrated codec in the form that encoding and decoding use: validated parameters and what is derived from them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "codec/entropy/stream.hpp"
#include "codec/kernels/kernels.hpp"
#include "orbitsplit/calibrated.hpp"

namespace orbitsplit::calibrated {

struct Prepared {
    CalibratedParameters parameters;
    std::vector<float> inverse_step;
    std::vector<float> inverse_scale;
    std::vector<float> transposed;          // of the matrix
    std::vector<float> transposed_inverse;  // where the codec has one
    float hadamard_scale = 1;               // 1 / sqrt(block)
    std::optional<stream::Tables> tables;   // none: codes are stored without entropy coding

    bool transforms() const { return parameters.hadamard > 1 || !parameters.matrix.empty(); }

    // As the kernels see it: with a transform they do not apply the shift.
    kernels::ChannelScales scales() const;
};

}  // namespace orbitsplit::calibrated
