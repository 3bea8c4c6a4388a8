#include "codec/kernels/vector/convert.hpp"

#include "codec/kernels/avx2/elements.hpp"

namespace orbitsplit::kernels {

constinit const Convert avx2::convert = make_convert<Float32, Float16, BFloat16>();

}  // namespace orbitsplit::kernels
