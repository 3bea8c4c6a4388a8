#include "codec/kernels/vector/convert.hpp"

#include "codec/kernels/neon/elements.hpp"

namespace orbitsplit::kernels {

constinit const Convert neon::convert = make_convert<Float32, Float16, BFloat16>();

}  // namespace orbitsplit::kernels
