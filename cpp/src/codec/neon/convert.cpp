#include "codec/vector/convert.hpp"

#include "codec/neon/elements.hpp"

namespace orbitsplit::kernels {

constinit const Convert neon::convert = make_convert<Float32, Float16, BFloat16>();

}  // namespace orbitsplit::kernels
