#include "planner/label_bounds.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

LabelBounds::LabelBounds(const Tables& t, const Metric& metric, const std::vector<Interval>& intervals)
    : decode_sum_(metric.decode_sum),
      prefill_max_(metric.prefill_max),
      decode_max_(metric.decode_max),
      loss_limit_(t.loss_limit) {
    for (const Interval& interval : intervals) {
        bands_.push_back({interval.low, prices_.size(), prices_.size() + interval.relaxations.size()});
        for (const auto& relaxation : interval.relaxations) {
            prices_.push_back(relaxation->price);
            depart_.push_back(relaxation->depart.data());
            arrive_.push_back(relaxation->arrive.data());
        }
    }
}

double LabelBounds::bound(const Label& label, std::size_t at) const {
    const double sum = label.prefill.sum + decode_sum_ * label.token.sum;
    const double max = prefill_max_ * label.prefill.max + decode_max_ * label.token.max;
    const double left = loss_limit_ - label.loss;
    const std::vector<const double*>& values = label.is_arrived ? arrive_ : depart_;
    double least = std::numeric_limits<double>::infinity();
    for (const Band& band : bands_) {
        double rest = 0;
        for (std::size_t c = band.first; c < band.stop; ++c)
            rest = std::max(rest, values[c][at] - prices_[c] * left);
        least = std::min(least, rest + std::max(max, band.low));
    }
    return sum + least;
}

}  // namespace orbitsplit::planner
