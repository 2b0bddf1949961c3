// ApiService over the router. Stateless but for the context that it shares with running generations.
#include "dsv3/api/service.h"

#include "context.h"
#include "router.h"

namespace dsv3 {
namespace {

class RoutedService final : public ApiService {
 public:
  RoutedService(ApiConfig config, Dependencies dependencies)
      : context_(std::make_shared<api::ApiContext>(std::move(config), std::move(dependencies))) {}

  void handle(HttpRequest request, std::shared_ptr<Exchange> exchange) override {
    api::dispatch({context_, std::move(request), std::move(exchange), {}});
  }

  void set_draining() override { context_->draining.store(true); }

 private:
  const std::shared_ptr<api::ApiContext> context_;
};

}  // namespace

std::unique_ptr<ApiService> ApiService::create(ApiConfig config, Dependencies dependencies) {
  return std::make_unique<RoutedService>(std::move(config), std::move(dependencies));
}

}  // namespace dsv3
