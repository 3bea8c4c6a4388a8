#include "codec/kernels/neon/values.hpp"

namespace orbitsplit::kernels {

constinit const Planes neon::planes = {PlanesOfBlocks<ValueBlocks>::exponents};

}  // namespace orbitsplit::kernels
