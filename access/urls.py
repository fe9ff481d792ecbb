from django.urls import path

from access import review_views, views

app_name = "access"

urlpatterns = [
    path("access/report/", views.report, name="report"),
    path("access/reviews/", review_views.listing, name="reviews"),
    path("access/reviews/start/", review_views.start, name="start_review"),
    path("access/reviews/<uuid:pk>/", review_views.detail, name="review"),
    path("access/reviews/<uuid:pk>/answer/", review_views.answer, name="answer_review"),
    path("access/reviews/<uuid:pk>/reassign/", review_views.reassign, name="reassign_review"),
    path("access/reviews/<uuid:pk>/remind/", review_views.remind, name="remind_reviewers"),
    path("access/reviews/<uuid:pk>/close/", review_views.close, name="close_review"),
]
