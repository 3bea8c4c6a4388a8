#include "codec/kernels/avx2/values.hpp"

namespace orbitsplit::kernels {

constinit const Planes avx2::planes = {PlanesOfBlocks<ValueBlocks>::exponents};

}  // namespace orbitsplit::kernels
