#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "orbitsplit/calibrated.hpp"
#include "support/message.hpp"

namespace orbitsplit {

namespace {

using Numbers = std::span<double>;

// The row from k on with the largest element in column k, the first of equal ones.
std::size_t pivot_of(Numbers a, std::size_t n, std::size_t k) {
    std::size_t best = k;
    for (std::size_t i = k + 1; i < n; ++i)
        if (std::fabs(a[i * n + k]) > std::fabs(a[best * n + k])) best = i;
    const double pivot = a[best * n + k];
    if (!(std::fabs(pivot) > 0 && std::isfinite(pivot)))
        throw std::invalid_argument(
            message::joined("matrix has no inverse: its column ", k, " has the pivot ", pivot));
    return best;
}

// Column k of the matrix becomes that of its inverse. No sum is reordered, so vector instructions give the same bits.
void eliminate(Numbers a, std::size_t n, std::size_t k) {
    const Numbers pivot_row = a.subspan(k * n, n);
    const double reciprocal = 1.0 / pivot_row[k];
    pivot_row[k] = 1.0;
    for (double& number : pivot_row) number *= reciprocal;
    for (std::size_t i = 0; i < n; ++i) {
        if (i == k) continue;
        const Numbers row = a.subspan(i * n, n);
        const double factor = std::exchange(row[k], 0.0);
        for (std::size_t j = 0; j < n; ++j) row[j] -= factor * pivot_row[j];
    }
}

std::vector<float> singles(const std::vector<double>& numbers) {
    std::vector<float> result;
    result.reserve(numbers.size());
    for (const double number : numbers) {
        if (!(std::fabs(number) <= std::numeric_limits<float>::max()))
            throw std::invalid_argument(
                message::joined("matrix has no inverse in float32: a number of it is ", number));
        result.push_back(static_cast<float>(number));
    }
    return result;
}

}  // namespace

std::vector<float> inverse_of(std::span<const float> matrix, std::size_t width) {
    const std::size_t n = width;
    if (n == 0 || matrix.size() / n != n || matrix.size() % n != 0)
        throw std::invalid_argument(message::joined("matrix has ", matrix.size(), " numbers, a width of ", n,
                                                    " needs its square, and at least 1"));
    std::vector<double> a(matrix.begin(), matrix.end());
    std::vector<std::size_t> pivots(n);
    for (std::size_t k = 0; k < n; ++k) {
        pivots[k] = pivot_of(a, n, k);
        if (pivots[k] != k)
            std::swap_ranges(a.begin() + static_cast<std::ptrdiff_t>(k * n),
                             a.begin() + static_cast<std::ptrdiff_t>((k + 1) * n),
                             a.begin() + static_cast<std::ptrdiff_t>(pivots[k] * n));
        eliminate(a, n, k);
    }
    for (std::size_t k = n; k-- > 0;)
        if (pivots[k] != k)
            for (std::size_t i = 0; i < n; ++i) std::swap(a[i * n + k], a[i * n + pivots[k]]);
    return singles(a);
}

}  // namespace orbitsplit
